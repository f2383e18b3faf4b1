"""Converts a network's variables to a PyTorch state_dict and back, and recognises the network of a state_dict.

Each family of networks has a module that defines the names of its tensors (`NETWORKS`) and how to recognise it
(`recognise`).
"""

from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from lrat_jax.convert import convnext, deepmind, small_images, swin, torchvision_resnets, vit, xcit
from lrat_jax.convert.tensors import Entry, Path, Recognised, Shape, UnknownNetworkError, first, mean_sparse
from lrat_jax.models.networks import MEAN_SPARSE

_FAMILIES = (deepmind, torchvision_resnets, small_images, convnext, swin, vit, xcit)
_NETWORKS: dict[type[nn.Module], Callable[..., Iterator[Entry]]] = {
  network: entries for family in _FAMILIES for network, entries in family.NETWORKS.items()
}


def entries(network: nn.Module, variables: Mapping[str, Any]) -> list[Entry]:
  """Lists every tensor of a network of `lrat_jax.models` once.

  Args:
    network: the network of a `models.Classifier`, without its preprocessing.
    variables: the classifier's {"params", "batch_stats"}, as arrays or only shapes.
  """
  named = list(_NETWORKS[type(network)](network, variables["params"]["network"]))
  return [*named, *_unpublished(variables, {entry.path for entry in named})]


def _unpublished(variables: Mapping[str, Any], named: Set[Path]) -> Iterator[Entry]:
  """Every MeanSparse in a network that Amini et al. published without it; the name is its path in our variables."""
  for path in sorted(traverse_util.flatten_dict(variables)):
    if path[-1] == "threshold" and path not in named:
      _, _, *place, _ = path
      yield from mean_sparse(".".join(["mean_sparse", *place]), *place)


def recognise(shapes: Mapping[str, Shape]) -> Recognised:
  """Recognises the network of a state_dict by the names and shapes of its tensors.

  Only what distinguishes networks is checked: the tensors may still differ from those that `entries` lists.

  Raises:
    UnknownNetworkError: it is none of the networks here.
  """
  for family in _FAMILIES:
    if found := family.recognise(shapes):
      sparse = any(name.startswith(found.prefix) and name.endswith(".threshold") for name in shapes)
      return _with_mean_sparse(found) if sparse else found
  raise UnknownNetworkError(
    f"{first(shapes)}: not the tensors of a known network; known are ResNet, PreActResNet-18 and WideResNet with the "
    "layer names of TRADES, RobustBench, Rice et al., Wong et al. or DeepMind, torchvision's ResNets, ConvNeXt, ViT, "
    "XCiT and Swin with those of timm, and the CNN of lrat_jax. Evaluate any other network as a function, with "
    "--model=package.module:function."
  )


def _with_mean_sparse(found: Recognised) -> Recognised:
  named = lambda network: network._replace(name=network.name + MEAN_SPARSE)
  return named(found)._replace(others=tuple(named(other) for other in found.others))


def state_dict(network: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A network's variables as a state_dict of NumPy arrays, in PyTorch's names and layouts; the same numbers to the bit.

  PyTorch's counters of batches are left out: `load_state_dict` sets them to zero.
  """
  ours = traverse_util.flatten_dict(variables)
  named = ((entry.name, entry.form.to_torch(np.asarray(ours[entry.path]))) for entry in entries(network, variables))
  return {name: np.asarray(array, order="C") for name, array in named}  # which keeps the shape () of a scalar


def variables(network: nn.Module, like: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The inverse of `state_dict`.

  Args:
    like: the variables' shapes, as `jax.eval_shape` of the classifier's `init` gives them.
    tensors: exactly those of the network.

  Raises:
    UnknownNetworkError: some are missing, left over, of another shape or not float32; the first of them are named.
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
  lines = [f"{what}: {first(found)}" for what, found in reasons.items() if found]
  if lines:
    raise UnknownNetworkError(f"{'; '.join(lines)}.")
  return traverse_util.unflatten_dict({entry.path: entry.form.from_torch(tensors[entry.name]) for entry in named})
