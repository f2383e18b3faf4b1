"""XCiT in timm's tensor names, which Debenedetti et al. and RobustBench also use."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flax import linen as nn

from lrat_jax.convert import tensors
from lrat_jax.convert.tensors import Entry, Recognised, Shape, UnknownNetworkError
from lrat_jax.models import xcit
from lrat_jax.models.xcit import XCiT

_ANCHOR = re.compile(r"((?:.+\.)?)blocks\.0\.attn\.temperature")
# For each number of convolutions in the stem, the possible patch sizes: no tensor determines the strides.
_PATCHES = {
  count: tuple(patch for patch, strides in xcit.STEMS.items() if len(strides) == count)
  for count in map(len, xcit.STEMS.values())
}


def _block(name: str, path: str) -> Iterator[Entry]:
  # timm numbers attention, MLP, local interaction in this order; they run in another one.
  for index, number in enumerate((1, 3, 2)):
    yield from tensors.layer_norm(f"{name}.norm{number}", path, f"LayerNorm_{index}")
    yield from tensors.parameter(f"{name}.gamma{number}", path, f"LayerScale_{index}", "scale")
  attention = "CrossCovarianceAttention_0"
  yield from tensors.parameter(f"{name}.attn.temperature", path, attention, "temperature")
  yield from tensors.dense(f"{name}.attn.qkv", path, attention, "Dense_0")
  yield from tensors.dense(f"{name}.attn.proj", path, attention, "Dense_1")
  local = (path, "LocalPatchInteraction_0")
  for index in range(2):
    yield from tensors.weights(f"{name}.local_mp.conv{index + 1}", (*local, f"Conv_{index}"), tensors.KERNEL, bias=True)
  yield from tensors.norm(f"{name}.local_mp.bn", *local, "BatchNorm_0")
  yield from tensors.mlp(f"{name}.mlp", path)


def _class_block(name: str, path: str) -> Iterator[Entry]:
  for index in range(2):
    yield from tensors.layer_norm(f"{name}.norm{index + 1}", path, f"LayerNorm_{index}")
    yield from tensors.parameter(f"{name}.gamma{index + 1}", path, f"LayerScale_{index}", "scale")
  for index, layer in enumerate(("q", "k", "v", "proj")):
    yield from tensors.dense(f"{name}.attn.{layer}", path, "ClassAttention_0", f"Dense_{index}")
  yield from tensors.mlp(f"{name}.mlp", path)


def _xcit(network: XCiT, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  for index in range(len(xcit.STEMS[network.patch])):
    name = f"patch_embed.proj.{2 * index}"
    yield from tensors.conv_norm(f"{name}.0", f"{name}.1", f"ConvNorm_{index}")
  yield from tensors.weights("pos_embed.token_projection", ("positions",), tensors.POINTWISE, bias=True)
  yield from tensors.parameter("cls_token", "cls_token")
  for index in range(network.depth):
    yield from _block(f"blocks.{index}", f"Block_{index}")
  for index in range(2):
    yield from _class_block(f"cls_attn_blocks.{index}", f"ClassBlock_{index}")
  yield from tensors.layer_norm("norm", "LayerNorm_0")
  yield from tensors.dense("head", "Dense_0")


NETWORKS: dict[type[nn.Module], Callable[..., Iterator[Entry]]] = {XCiT: _xcit}


def recognise(shapes: Mapping[str, Shape]) -> Recognised | None:
  """Recognises an XCiT by the names and shapes of its tensors; returns None for another network."""
  prefix = min((match[1] for name in shapes if (match := _ANCHOR.fullmatch(name))), key=len, default=None)
  if prefix is None:
    return None
  size = functools.partial(tensors.size, shapes)
  convolutions = tensors.count(shapes, prefix + "patch_embed.proj.{}.0.weight", step=2)
  if convolutions not in _PATCHES:
    raise UnknownNetworkError(f"an XCiT must have a stem of {sorted(_PATCHES)} convolutions, not of {convolutions}.")
  depth = tensors.count(shapes, prefix + "blocks.{}.attn.temperature")
  width, num_heads = size(f"{prefix}cls_token", 2, 3), size(f"{prefix}blocks.0.attn.temperature", 0, 3)
  found, *others = (
    Recognised(
      prefix,
      xcit.name_of(depth, width, num_heads, patch),
      num_classes=size(f"{prefix}head.weight", 0, 2),
      channels=size(f"{prefix}patch_embed.proj.0.0.weight", 1, 4),
      image_size=(32, 32),
      activation="gelu",
    )
    for patch in _PATCHES[convolutions]
  )
  return found._replace(others=tuple(others))
