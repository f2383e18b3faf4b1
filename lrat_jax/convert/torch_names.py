"""The tensors of PyTorch's state_dicts and where they belong in our networks, by the names that are in use for them.

ResNet-18 and WideResNet are named as TRADES defines them, which RobustBench and Rice et al. share; PreActResNet-18 as
Rice et al.; our CNN as a plain `nn.Sequential` of convolutions, ReLUs, Flatten and linear layers.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn
from flax import traverse_util

from lrat_jax.models.cnn import CNN
from lrat_jax.models.preact_resnet import PreActResNet
from lrat_jax.models.resnet import ResNet
from lrat_jax.models.wide_resnet import WideResNet

_Path = tuple[str, ...]
_Shape = tuple[int, ...]

# Our CNN's layers in its nn.Sequential; a ReLU follows each but the last, Flatten stands before the first linear.
_CNN_CONVS, _CNN_HIDDEN, _CNN_HEAD = ("0", "2", "4", "6"), "9", "11"
# One tensor of each kind of network, behind whatever a wrapper put before its name.
_ANCHOR = re.compile(r"((?:.+\.)?)(layer1\.0\.conv1|block1\.layer\.0\.conv1|11)\.weight")


class UnknownNetworkError(ValueError):
  """Tensors that are none of the networks here; the message is one line."""


class _Form(NamedTuple):
  """How the axes of a tensor lie there and here."""

  to_torch: Callable[[np.ndarray], np.ndarray]
  from_torch: Callable[[np.ndarray], np.ndarray]


class Entry(NamedTuple):
  """One tensor: its name in PyTorch, its path in our variables, and how one becomes the other."""

  name: str
  path: _Path
  form: _Form


class Recognised(NamedTuple):
  """What names and shapes tell of a network.

  Attributes:
    prefix: what stands before the names of its tensors, "" or as "module.".
    name: as `models.create` takes it.
    num_classes, channels: of its logits and of its input.
    image_size: (height, width) of an input that its shapes fit; of most networks any other fits too.
  """

  prefix: str
  name: str
  num_classes: int
  channels: int
  image_size: tuple[int, int]


_SAME = _Form(lambda array: array, lambda tensor: tensor)
_KERNEL = _Form(lambda kernel: kernel.transpose(3, 2, 0, 1), lambda weight: weight.transpose(2, 3, 1, 0))
_DENSE = _Form(lambda kernel: kernel.T, lambda weight: weight.T)


def _flattened(channels: int) -> _Form:
  """The kernel of a dense layer after convolutions: PyTorch flattens channels first, we flatten them last."""
  return _Form(
    lambda kernel: kernel.reshape(-1, channels, kernel.shape[1]).transpose(2, 1, 0).reshape(kernel.shape[1], -1),
    lambda weight: weight.reshape(len(weight), channels, -1).transpose(2, 1, 0).reshape(-1, len(weight)),
  )


def _weights(name: str, path: _Path, form: _Form, *, bias: bool) -> Iterator[Entry]:
  """A convolution or dense layer."""
  yield Entry(f"{name}.weight", ("params", "network", *path, "kernel"), form)
  if bias:
    yield Entry(f"{name}.bias", ("params", "network", *path, "bias"), _SAME)


def _conv(name: str, *path: str) -> Iterator[Entry]:
  return _weights(name, path, _KERNEL, bias=False)


def _norm(name: str, *path: str) -> Iterator[Entry]:
  for theirs, collection, ours in (
    ("weight", "params", "scale"),
    ("bias", "params", "bias"),
    ("running_mean", "batch_stats", "mean"),
    ("running_var", "batch_stats", "var"),
  ):
    yield Entry(f"{name}.{theirs}", (collection, "network", *path, ours), _SAME)


def _conv_norm(conv: str, norm: str, *path: str) -> Iterator[Entry]:
  yield from _conv(conv, *path, "Conv_0")
  yield from _norm(norm, *path, "BatchNorm_0")


def _pre_activation(name: str, shortcut: str, path: str, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  yield from _norm(f"{name}.bn1", path, "BatchNorm_0")
  yield from _conv_norm(f"{name}.conv1", f"{name}.bn2", path, "ConvNorm_0")
  yield from _conv(f"{name}.conv2", path, "Conv_0")
  if "Conv_1" in parameters[path]:
    yield from _conv(f"{name}.{shortcut}", path, "Conv_1")


def _blocks(counts: Iterable[int]) -> Iterator[tuple[int, int, int]]:
  """(stage from 1, block in it, block in all) of every block."""
  pairs = ((stage, block) for stage, count in enumerate(counts, 1) for block in range(count))
  return ((stage, block, index) for index, (stage, block) in enumerate(pairs))


def _resnet(network: ResNet, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  yield from _conv_norm("conv1", "bn1", "ConvNorm_0")
  for stage, block, index in _blocks(network.blocks):
    name, path = f"layer{stage}.{block}", f"BasicBlock_{index}"
    yield from _conv_norm(f"{name}.conv1", f"{name}.bn1", path, "ConvNorm_0")
    yield from _conv_norm(f"{name}.conv2", f"{name}.bn2", path, "ConvNorm_1")
    if "ConvNorm_2" in parameters[path]:
      yield from _conv_norm(f"{name}.shortcut.0", f"{name}.shortcut.1", path, "ConvNorm_2")
  yield from _weights("linear", ("Dense_0",), _DENSE, bias=True)


def _preact_resnet(network: PreActResNet, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  yield from _conv("conv1", "Conv_0")
  for stage, block, index in _blocks(network.blocks):
    yield from _pre_activation(f"layer{stage}.{block}", "shortcut.0", f"PreActivationBlock_{index}", parameters)
  yield from _norm("bn", "BatchNorm_0")
  yield from _weights("linear", ("Dense_0",), _DENSE, bias=True)


def _wide_resnet(network: WideResNet, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  yield from _conv("conv1", "Conv_0")
  for group, block, index in _blocks([(network.depth - 4) // 6] * 3):
    name = f"block{group}.layer.{block}"
    yield from _pre_activation(name, "convShortcut", f"PreActivationBlock_{index}", parameters)
  yield from _norm("bn1", "BatchNorm_0")
  yield from _weights("fc", ("Dense_0",), _DENSE, bias=True)


def _cnn(network: CNN, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  for index, name in enumerate(_CNN_CONVS):
    yield from _weights(name, (f"Conv_{index}",), _KERNEL, bias=True)
  yield from _weights(_CNN_HIDDEN, ("Dense_0",), _flattened(2 * network.width), bias=True)
  yield from _weights(_CNN_HEAD, ("Dense_1",), _DENSE, bias=True)


_NETWORKS: dict[type[nn.Module], Callable[..., Iterator[Entry]]] = {
  CNN: _cnn,
  ResNet: _resnet,
  PreActResNet: _preact_resnet,
  WideResNet: _wide_resnet,
}


def entries(network: nn.Module, variables: Mapping[str, Any]) -> list[Entry]:
  """Every tensor of a network of `lrat_jax.models`, once.

  Args:
    network: that of a `models.Classifier`, without its normalisation.
    variables: the classifier's {"params", "batch_stats"}, arrays or only their shapes.
  """
  return list(_NETWORKS[type(network)](network, variables["params"]["network"]))


def _size(shapes: Mapping[str, _Shape], name: str, axis: int, dimensions: int) -> int:
  """A length in a tensor's shape. Raises UnknownNetworkError where it has none."""
  shape = shapes.get(name)
  if shape is None:
    raise UnknownNetworkError(f"{name} is missing.")
  if len(shape) != dimensions or 0 in shape:
    raise UnknownNetworkError(f"{name} has the shape {list(shape)}, which is none that a layer here has.")
  return shape[axis]


def _stages(shapes: Mapping[str, _Shape], prefix: str) -> tuple[str, str]:
  """(name for `models.create`, name of its last layer) of a network in stages."""
  stem = _size(shapes, f"{prefix}conv1.weight", 0, 4)
  if f"{prefix}block1.layer.0.conv1.weight" in shapes:
    depth = 4 + 6 * sum(f"{prefix}block1.layer.{block}.conv1.weight" in shapes for block in range(len(shapes)))
    width = _size(shapes, f"{prefix}block1.layer.0.conv1.weight", 0, 4) // 16
    return f"wide_resnet_{depth}_{width}", f"{prefix}fc"
  family = "resnet18" if f"{prefix}bn1.weight" in shapes else "preact_resnet18"
  return family if stem == 64 else f"{family}_{stem}", f"{prefix}linear"


def recognise(shapes: Mapping[str, _Shape]) -> Recognised:
  """Which network a state_dict is of, by the names and shapes of its tensors.

  Only as much is looked at as tells networks apart: the tensors may still not be all that `entries` names.

  Raises:
    UnknownNetworkError: none of those here.
  """
  prefixes = {match[1]: match[2] for name in shapes if (match := _ANCHOR.fullmatch(name))}
  if not prefixes:
    raise UnknownNetworkError(
      f"{_first(shapes)} are no network known here: ResNet-18, PreActResNet-18 or WideResNet as TRADES, RobustBench "
      "and Rice et al. name their layers, or the CNN of lrat_jax. Any other is evaluated as a function, "
      "--model=package.module:function."
    )
  prefix = min(prefixes, key=len)
  if prefixes[prefix] == _CNN_HEAD:
    stem, head = f"{prefix}{_CNN_CONVS[0]}", f"{prefix}{_CNN_HEAD}"
    width = _size(shapes, f"{stem}.weight", 0, 4)
    name = "cnn" if width == 32 else f"cnn_{width}"
    places = _size(shapes, f"{prefix}{_CNN_HIDDEN}.weight", 1, 2) // (2 * width)
    image_size = (4, 4 * max(1, places))  # two strides of 2
  else:
    name, head = _stages(shapes, prefix)
    stem, image_size = f"{prefix}conv1", (8, 8)
  num_classes, channels = _size(shapes, f"{head}.weight", 0, 2), _size(shapes, f"{stem}.weight", 1, 4)
  return Recognised(prefix, name, num_classes, channels, image_size)


def _first(names: Iterable[str], count: int = 4) -> str:
  """The first of some names, and how many more there are."""
  names = sorted(names)
  more = f" and {len(names) - count} more" if len(names) > count else ""
  return ", ".join(names[:count]) + more if names else "no tensors"


def state_dict(network: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A network's variables as a state_dict of NumPy arrays, in PyTorch's names and layouts; the same numbers to the bit.

  PyTorch's counters of batches are not among them: `load_state_dict` puts zeros there.
  """
  ours = traverse_util.flatten_dict(variables)
  named = ((entry.name, entry.form.to_torch(np.asarray(ours[entry.path]))) for entry in entries(network, variables))
  return {name: np.ascontiguousarray(array) for name, array in named}


def variables(network: nn.Module, like: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The inverse of `state_dict`.

  Args:
    like: the variables' shapes, as `jax.eval_shape` of the classifier's `init` gives them.
    tensors: exactly those of the network.

  Raises:
    UnknownNetworkError: some are missing, left over, of another shape or not floats; the first of them are named.
  """
  expected, named = traverse_util.flatten_dict(like), entries(network, like)
  blank = lambda path: np.broadcast_to(np.float32(0), expected[path].shape)
  shapes = {entry.name: entry.form.to_torch(blank(entry.path)).shape for entry in named}
  common = shapes.keys() & tensors.keys()
  reasons = {
    "missing": shapes.keys() - tensors.keys(),
    "left over": tensors.keys() - shapes.keys(),
    "of another shape": [
      f"{name} {list(tensors[name].shape)} instead of {list(shapes[name])}"
      for name in common
      if tensors[name].shape != shapes[name]
    ],
    "not float32": [f"{name} {tensors[name].dtype}" for name in common if tensors[name].dtype != np.float32],
  }
  lines = [f"{what}: {_first(found)}" for what, found in reasons.items() if found]
  if lines:
    raise UnknownNetworkError(f"{'; '.join(lines)}.")
  return traverse_util.unflatten_dict({entry.path: entry.form.from_torch(tensors[entry.name]) for entry in named})
