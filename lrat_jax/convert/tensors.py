"""One tensor of a PyTorch state_dict: its name there, its path in our variables, and the conversion between the two."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from lrat_jax.models.resnet import BLOCKS

Path = tuple[str, ...]
Shape = tuple[int, ...]


class UnknownNetworkError(ValueError):
  """The tensors fit no known network; the message is one line."""


class Form(NamedTuple):
  """The conversion of a tensor's layout to PyTorch's and from it."""

  to_torch: Callable[[np.ndarray], np.ndarray]
  from_torch: Callable[[np.ndarray], np.ndarray]


class Entry(NamedTuple):
  """One tensor: its name in PyTorch, its path in our variables, and the conversion between the two."""

  name: str
  path: Path
  form: Form


class Recognised(NamedTuple):
  """The properties of a network that follow from its tensors' names and shapes.

  Attributes:
    prefix: the common prefix of its tensors' names: "", or for example "module.".
    name: as `models.create` takes it.
    num_classes, channels: of its logits and of its input.
    image_size: (height, width) of an input that fits its shapes; most networks take any other size too.
    activation: of the definition with these tensor names, as `models.create` takes it; None if the definition leaves it
      open.
    others: other networks that the same tensors fit, with different logits.
    renamed: from the names in this file to ours, if they differ; both without the prefix.
  """

  prefix: str
  name: str
  num_classes: int
  channels: int
  image_size: tuple[int, int]
  activation: str | None = None
  others: "tuple[Recognised, ...]" = ()
  renamed: Mapping[str, str] = MappingProxyType({})

  @property
  def fitting(self) -> "dict[str, Recognised]":
    """The networks that the tensors fit, by name."""
    return {network.name: network for network in (self, *self.others)}


SAME = Form(lambda array: array, lambda tensor: tensor)
KERNEL = Form(lambda kernel: kernel.transpose(3, 2, 0, 1), lambda weight: weight.transpose(2, 3, 1, 0))
DENSE = Form(lambda kernel: kernel.T, lambda weight: weight.T)
# A dense layer here, a 1x1 convolution in PyTorch.
POINTWISE = Form(lambda kernel: kernel.T[:, :, None, None], lambda weight: weight[:, :, 0, 0].T)


def flattened(channels: int) -> Form:
  """The kernel of a dense layer after convolutions: PyTorch flattens channels first, we flatten them last."""
  return Form(
    lambda kernel: kernel.reshape(-1, channels, kernel.shape[1]).transpose(2, 1, 0).reshape(kernel.shape[1], -1),
    lambda weight: weight.reshape(len(weight), channels, -1).transpose(2, 1, 0).reshape(-1, len(weight)),
  )


def weights(name: str, path: Path, form: Form, *, bias: bool) -> Iterator[Entry]:
  """A convolution or dense layer."""
  yield Entry(f"{name}.weight", ("params", "network", *path, "kernel"), form)
  if bias:
    yield Entry(f"{name}.bias", ("params", "network", *path, "bias"), SAME)


def conv(name: str, *path: str) -> Iterator[Entry]:
  return weights(name, path, KERNEL, bias=False)


def norm(name: str, *path: str) -> Iterator[Entry]:
  for theirs, collection, ours in (
    ("weight", "params", "scale"),
    ("bias", "params", "bias"),
    ("running_mean", "batch_stats", "mean"),
    ("running_var", "batch_stats", "var"),
  ):
    yield Entry(f"{name}.{theirs}", (collection, "network", *path, ours), SAME)


def mean_sparse(name: str, *path: str) -> Iterator[Entry]:
  for theirs, ours in (("running_mean", "mean"), ("running_var", "var"), ("threshold", "threshold")):
    yield Entry(f"{name}.{theirs}", ("batch_stats", "network", *path, ours), SAME)


def dense(name: str, *path: str) -> Iterator[Entry]:
  return weights(name, path, DENSE, bias=True)


def layer_norm(name: str, *path: str) -> Iterator[Entry]:
  yield Entry(f"{name}.weight", ("params", "network", *path, "scale"), SAME)
  yield Entry(f"{name}.bias", ("params", "network", *path, "bias"), SAME)


def parameter(name: str, *path: str, form: Form = SAME) -> Iterator[Entry]:
  """A single parameter, such as a layer scale or a position embedding."""
  yield Entry(name, ("params", "network", *path), form)


def mlp(name: str, *path: str) -> Iterator[Entry]:
  for index in range(2):
    yield from dense(f"{name}.fc{index + 1}", *path, "Mlp_0", f"Dense_{index}")


def attention(name: str, *path: str) -> Iterator[Entry]:
  for index, layer in enumerate(("qkv", "proj")):
    yield from dense(f"{name}.{layer}", *path, "SelfAttention_0", f"Dense_{index}")


def conv_stem(name: str, *path: str, layers: int, projected: bool) -> Iterator[Entry]:
  """`ConvStem`, whose layers, including GELU, are numbered in one nn.Sequential."""
  for index in range(layers):
    yield from weights(f"{name}.{3 * index}", (*path, "ConvStem_0", f"Conv_{index}"), KERNEL, bias=True)
    yield from layer_norm(f"{name}.{3 * index + 1}", *path, "ConvStem_0", f"LayerNorm_{index}")
  if projected:
    yield from weights(f"{name}.{3 * layers}", (*path, "ConvStem_0", f"Conv_{layers}"), KERNEL, bias=True)


def conv_norm(conv_name: str, norm_name: str, *path: str) -> Iterator[Entry]:
  yield from conv(conv_name, *path, "Conv_0")
  yield from norm(norm_name, *path, "BatchNorm_0")


def size(shapes: Mapping[str, Shape], name: str, axis: int, dimensions: int) -> int:
  """A tensor's size along an axis. Raises UnknownNetworkError if it is missing or its shape is not valid."""
  shape = shapes.get(name)
  if shape is None:
    raise UnknownNetworkError(f"{name} is missing.")
  if len(shape) != dimensions or 0 in shape:
    raise UnknownNetworkError(f"{name} has the shape {list(shape)}, which no layer here has.")
  return shape[axis]


def blocks(counts: Iterable[int]) -> Iterator[tuple[int, int, int]]:
  """(stage from 1, index in the stage, index in the network) of every block of a network in stages."""
  pairs = ((stage, block) for stage, count in enumerate(counts, 1) for block in range(count))
  return ((stage, block, index) for index, (stage, block) in enumerate(pairs))


def depth(counts: Sequence[int], bottleneck: bool = False) -> str:
  """The depth of a ResNet from the blocks of its stages. Raises UnknownNetworkError if it is none of He et al.'s."""
  layers = 3 if bottleneck else 2
  for text, published in BLOCKS.items():
    if tuple(counts) == published and 2 + layers * sum(counts) == int(text):
      return text
  raise UnknownNetworkError(f"stages of {list(counts)} blocks of {layers} convolutions are not a ResNet known here.")


def count(shapes: Mapping[str, Shape], name: str, step: int = 1) -> int:
  """The number of tensors called `name`, such as "blocks.{}.weight", with indices 0, step, 2 step, ... up to a gap."""
  return next(index for index in itertools.count() if name.replace("{}", str(index * step)) not in shapes)


def first(names: Iterable[str], count: int = 4) -> str:
  """The first of some names, and how many more there are."""
  names = sorted(names)
  more = f" and {len(names) - count} more" if len(names) > count else ""
  return ", ".join(names[:count]) + more if names else "no tensors"
