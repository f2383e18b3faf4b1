"""One tensor of a PyTorch state_dict: its name there, its place in our variables, and how one becomes the other."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lrat_jax.models.resnet import BLOCKS

Path = tuple[str, ...]
Shape = tuple[int, ...]


class UnknownNetworkError(ValueError):
  """Tensors that are none of the networks here; the message is one line."""


class Form(NamedTuple):
  """How the axes of a tensor lie there and here."""

  to_torch: Callable[[np.ndarray], np.ndarray]
  from_torch: Callable[[np.ndarray], np.ndarray]


class Entry(NamedTuple):
  """One tensor: its name in PyTorch, its path in our variables, and how one becomes the other."""

  name: str
  path: Path
  form: Form


class Recognised(NamedTuple):
  """What names and shapes tell of a network.

  Attributes:
    prefix: what stands before the names of its tensors, "" or as "module.".
    name: as `models.create` takes it.
    num_classes, channels: of its logits and of its input.
    image_size: (height, width) of an input that its shapes fit; of most networks any other fits too.
    activation: as `models.create` takes it; None where the tensors do not tell it.
  """

  prefix: str
  name: str
  num_classes: int
  channels: int
  image_size: tuple[int, int]
  activation: str | None = None


SAME = Form(lambda array: array, lambda tensor: tensor)
KERNEL = Form(lambda kernel: kernel.transpose(3, 2, 0, 1), lambda weight: weight.transpose(2, 3, 1, 0))
DENSE = Form(lambda kernel: kernel.T, lambda weight: weight.T)


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


def conv_norm(conv_name: str, norm_name: str, *path: str) -> Iterator[Entry]:
  yield from conv(conv_name, *path, "Conv_0")
  yield from norm(norm_name, *path, "BatchNorm_0")


def size(shapes: Mapping[str, Shape], name: str, axis: int, dimensions: int) -> int:
  """A length in a tensor's shape. Raises UnknownNetworkError where it has none."""
  shape = shapes.get(name)
  if shape is None:
    raise UnknownNetworkError(f"{name} is missing.")
  if len(shape) != dimensions or 0 in shape:
    raise UnknownNetworkError(f"{name} has the shape {list(shape)}, which is none that a layer here has.")
  return shape[axis]


def blocks(counts: Iterable[int]) -> Iterator[tuple[int, int, int]]:
  """(stage from 1, block in it, block in all) of every block of a network in stages."""
  pairs = ((stage, block) for stage, count in enumerate(counts, 1) for block in range(count))
  return ((stage, block, index) for index, (stage, block) in enumerate(pairs))


def count(shapes: Mapping[str, Shape], before: str, after: str) -> int:
  """How many blocks have a tensor of that name, with the block's number, from 0, between `before` and `after`."""
  return next(number for number in itertools.count() if f"{before}{number}{after}" not in shapes)


def depth(counts: Sequence[int], bottleneck: bool = False) -> str:
  """The depth of a ResNet by the blocks of its stages. Raises UnknownNetworkError where it is none of He et al.'s."""
  layers = 3 if bottleneck else 2
  for text, published in BLOCKS.items():
    if tuple(counts) == published and 2 + layers * sum(counts) == int(text):
      return text
  raise UnknownNetworkError(f"stages of {list(counts)} blocks of {layers} convolutions are no ResNet known here.")


def first(names: Iterable[str], count: int = 4) -> str:
  """The first of some names, and how many more there are."""
  names = sorted(names)
  more = f" and {len(names) - count} more" if len(names) > count else ""
  return ", ".join(names[:count]) + more if names else "no tensors"
