"""ViT and DeiT in timm's tensor names, their ConvStem in those of Singh et al. and RobustBench."""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flax import linen as nn

from lrat_jax.convert import tensors
from lrat_jax.convert.tensors import KERNEL, Entry, Recognised, Shape, UnknownNetworkError
from lrat_jax.models import vit
from lrat_jax.models.vit import VisionTransformer

# The other transformers here have no position embedding with this name.
_ANCHOR = re.compile(r"((?:.+\.)?)pos_embed")
_PATCHES, _STEM = "patch_embed.proj", "patch_embed.proj.stem"


def _vit(network: VisionTransformer, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  yield from tensors.parameter("cls_token", "cls_token")
  yield from tensors.parameter("pos_embed", "pos_embed")
  if network.convstem:
    yield from tensors.conv_stem(_STEM, layers=network.patch.bit_length() - 1, projected=True)
  else:
    yield from tensors.weights(_PATCHES, ("Conv_0",), KERNEL, bias=True)
  for index in range(network.depth):
    name, path = f"blocks.{index}", f"Block_{index}"
    yield from tensors.layer_norm(f"{name}.norm1", path, "LayerNorm_0")
    yield from tensors.attention(f"{name}.attn", path)
    yield from tensors.layer_norm(f"{name}.norm2", path, "LayerNorm_1")
    yield from tensors.mlp(f"{name}.mlp", path)
  yield from tensors.layer_norm("norm", "LayerNorm_0")
  yield from tensors.dense("head", "Dense_0")


NETWORKS: dict[type[nn.Module], Callable[..., Iterator[Entry]]] = {VisionTransformer: _vit}


def _heads(depth: int, width: int) -> list[int]:
  """Possible numbers of heads, which no tensor determines; for a published depth and width, the published number."""
  published = [size.num_heads for size in vit.SIZES.values() if (size.depth, size.width) == (depth, width)]
  return published or [heads for heads in range(1, width + 1) if width % heads == 0]


def recognise(shapes: Mapping[str, Shape]) -> Recognised | None:
  """Recognises a ViT or DeiT by the names and shapes of its tensors; returns None for another network."""
  prefix = min((match[1] for name in shapes if (match := _ANCHOR.fullmatch(name))), key=len, default=None)
  if prefix is None or f"{prefix}blocks.0.attn.qkv.weight" not in shapes:
    return None
  size, count = functools.partial(tensors.size, shapes), functools.partial(tensors.count, shapes)
  depth, width = count(prefix + "blocks.{}.attn.qkv.weight"), size(f"{prefix}cls_token", 2, 3)
  layers = max(count(f"{prefix}{_STEM}.{{}}.weight", step=3) - 1, 0)  # without the projection
  first = f"{prefix}{_STEM}.0.weight" if layers else f"{prefix}{_PATCHES}.weight"
  patch, convstem = (2**layers, size(first, 0, 4)) if layers else (size(first, 2, 4), 0)
  patches = size(f"{prefix}pos_embed", 1, 3) - 1
  side = math.isqrt(max(patches, 0))
  if side * side != patches or not side:
    raise UnknownNetworkError(
      f"{prefix}pos_embed is for {patches} patches and a class token, but the patches must form a square."
    )
  names = [vit.name_of(depth, width, heads, patch, convstem) for heads in _heads(depth, width)]
  found = Recognised(
    prefix,
    names[0],
    num_classes=size(f"{prefix}head.weight", 0, 2),
    channels=size(first, 1, 4),
    image_size=(side * patch, side * patch),
    activation="gelu",
  )
  return found._replace(others=tuple(found._replace(name=name) for name in names[1:]))
