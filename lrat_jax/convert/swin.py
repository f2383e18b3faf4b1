"""Swin in the tensor names of timm since 0.9, and in those of the original.

Files of older versions of timm also have the original's names, and so do those of MIMIR (Xu et al.), whose layer norm
has another epsilon. Here, a network with that epsilon has the original's names.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flax import linen as nn

from lrat_jax.convert import tensors
from lrat_jax.convert.tensors import Entry, Recognised, Shape, UnknownNetworkError
from lrat_jax.models import swin
from lrat_jax.models.swin import Swin

_ANCHOR = re.compile(r"((?:.+\.)?)layers\.0\.blocks\.0\.attn\.relative_position_bias_table")
# In timm, the merging of patches belongs to the next stage, in the original to the previous one.
_MERGING = re.compile(r"(layers\.)(\d+)(\.downsample\..+)")


def _original(name: str) -> str:
  """The original's name of a tensor, from its name in timm."""
  name = _MERGING.sub(lambda match: f"{match[1]}{int(match[2]) - 1}{match[3]}", name)
  return name.replace("head.fc.", "head.")


def _newer(name: str) -> str:
  """The inverse of `_original`."""
  name = _MERGING.sub(lambda match: f"{match[1]}{int(match[2]) + 1}{match[3]}", name)
  return re.sub(r"^head\.", "head.fc.", name)


def _timm(network: Swin) -> Iterator[Entry]:
  yield from tensors.weights("patch_embed.proj", ("Conv_0",), tensors.KERNEL, bias=True)
  yield from tensors.layer_norm("patch_embed.norm", "LayerNorm_0")
  for stage in range(1, len(network.depths)):
    name, path = f"layers.{stage}.downsample", f"Merging_{stage - 1}"
    yield from tensors.layer_norm(f"{name}.norm", path, "LayerNorm_0")
    yield from tensors.weights(f"{name}.reduction", (path, "Dense_0"), tensors.DENSE, bias=False)
  names = (f"layers.{stage}.blocks.{block}" for stage, depth in enumerate(network.depths) for block in range(depth))
  for index, name in enumerate(names):
    path, attention = f"Block_{index}", (f"Block_{index}", "WindowAttention_0")
    yield from tensors.parameter(f"{name}.attn.relative_position_bias_table", *attention, "bias_table")
    yield from tensors.attention(f"{name}.attn", *attention)
    for number in (1, 2):
      yield from tensors.layer_norm(f"{name}.norm{number}", path, f"LayerNorm_{number - 1}")
    yield from tensors.mlp(f"{name}.mlp", path)
    if network.mean_sparse:
      yield from tensors.mean_sparse(f"{name}.meansparse1", path, "MeanSparse_0")
      yield from tensors.mean_sparse(f"{name}.mlp.meansparse1", path, "Mlp_0", "MeanSparse_0")
      yield from tensors.mean_sparse(f"{name}.mlp.meansparse2", path, "MeanSparse_1")
      yield from tensors.mean_sparse(f"{name}.meansparse2", path, "MeanSparse_2")
  yield from tensors.layer_norm("norm", "LayerNorm_1")
  yield from tensors.dense("head.fc", "Dense_0")


def _swin(network: Swin, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  is_mimir = network.epsilon == swin.MIMIR_EPSILON
  for entry in _timm(network):
    yield entry._replace(name=_original(entry.name)) if is_mimir else entry


NETWORKS: dict[type[nn.Module], Callable[..., Iterator[Entry]]] = {Swin: _swin}


def recognise(shapes: Mapping[str, Shape]) -> Recognised | None:
  """Recognises a Swin by the names and shapes of its tensors; returns None for another network."""
  prefix = min((match[1] for name in shapes if (match := _ANCHOR.fullmatch(name))), key=len, default=None)
  if prefix is None:
    return None
  size, count = functools.partial(tensors.size, shapes), functools.partial(tensors.count, shapes)
  stages = range(count(prefix + "layers.{}.blocks.0.norm1.weight"))
  depths = tuple(count(f"{prefix}layers.{stage}.blocks." + "{}.norm1.weight") for stage in stages)
  windows = [_window(shapes, f"{prefix}layers.{stage}.blocks.0.attn") for stage in stages]
  stem = f"{prefix}patch_embed.proj.weight"
  width, patch = size(stem, 0, 4), size(stem, 2, 4)
  is_original = f"{prefix}head.weight" in shapes
  name_of = functools.partial(swin.name_of, depths, width, patch, max(windows))
  found = Recognised(
    prefix,
    name_of(),
    num_classes=size(f"{prefix}{'head' if is_original else 'head.fc'}.weight", 0, 2),
    channels=size(stem, 1, 4),
    image_size=(patch * windows[-1] * 2 ** stages[-1],) * 2,
    activation="gelu",
  )
  if not is_original:
    return found
  names = [name.removeprefix(prefix) for name in shapes]
  return found._replace(
    renamed={name: _newer(name) for name in names}, others=(found._replace(name=name_of(epsilon=swin.MIMIR_EPSILON)),)
  )


def _window(shapes: Mapping[str, Shape], name: str) -> int:
  """The side of a window, from the number of relative positions in its bias table."""
  distances = tensors.size(shapes, f"{name}.relative_position_bias_table", 0, 2)
  side = math.isqrt(distances)
  if side**2 != distances or side % 2 == 0:
    raise UnknownNetworkError(f"{name}.relative_position_bias_table is for windows that are not square.")
  return (side + 1) // 2
