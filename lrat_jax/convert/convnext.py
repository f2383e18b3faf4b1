"""ConvNeXt in timm's tensor names, its ConvStem in those of Singh et al. and RobustBench, also with MeanSparse."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flax import linen as nn

from lrat_jax.convert import tensors
from lrat_jax.convert.tensors import KERNEL, Entry, Recognised, Shape
from lrat_jax.models import convnext
from lrat_jax.models.convnext import ConvNeXt

_ANCHOR = re.compile(r"((?:.+\.)?)stages\.0\.blocks\.0\.conv_dw\.weight")


def _convnext(network: ConvNeXt, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  if network.convstem:
    yield from tensors.conv_stem("stem.stem", layers=network.convstem, projected=False)
  else:
    yield from tensors.weights("stem.0", ("PatchStem_0", "Conv_0"), KERNEL, bias=True)
    yield from tensors.layer_norm("stem.1", "PatchStem_0", "LayerNorm_0")
  for stage in range(1, len(network.depths)):
    name, path = f"stages.{stage}.downsample", f"Downsample_{stage - 1}"
    yield from tensors.layer_norm(f"{name}.0", path, "LayerNorm_0")
    yield from tensors.weights(f"{name}.1", (path, "Conv_0"), KERNEL, bias=True)
  places = ((stage, block) for stage, depth in enumerate(network.depths) for block in range(depth))
  for index, (stage, block) in enumerate(places):
    name, path = f"stages.{stage}.blocks.{block}", f"ConvNeXtBlock_{index}"
    yield from tensors.weights(f"{name}.conv_dw", (path, "Conv_0"), KERNEL, bias=True)
    yield from tensors.layer_norm(f"{name}.norm", path, "LayerNorm_0")
    yield from tensors.mlp(f"{name}.mlp", path)
    yield from tensors.parameter(f"{name}.gamma", path, "LayerScale_0", "scale")
    if network.mean_sparse:
      yield from tensors.mean_sparse(f"{name}.mlp.act.0", path, "Mlp_0", "MeanSparse_0")
      yield from tensors.mean_sparse(f"{name}.drop_path.1", path, "MeanSparse_0")
  yield from tensors.layer_norm("head.norm", "LayerNorm_0")
  yield from tensors.dense("head.fc", "Dense_0")


NETWORKS: dict[type[nn.Module], Callable[..., Iterator[Entry]]] = {ConvNeXt: _convnext}


def recognise(shapes: Mapping[str, Shape]) -> Recognised | None:
  """Recognises a ConvNeXt by the names and shapes of its tensors; returns None for another network."""
  prefix = min((match[1] for name in shapes if (match := _ANCHOR.fullmatch(name))), key=len, default=None)
  if prefix is None:
    return None
  size, count = functools.partial(tensors.size, shapes), functools.partial(tensors.count, shapes)
  stages = range(count(prefix + "stages.{}.blocks.0.conv_dw.weight"))
  depths = tuple(count(f"{prefix}stages.{stage}.blocks.{{}}.conv_dw.weight") for stage in stages)
  widths = tuple(size(f"{prefix}stages.{stage}.blocks.0.conv_dw.weight", 0, 4) for stage in stages)
  convstem = count(prefix + "stem.stem.{}.weight", step=3)
  stem = f"{prefix}stem.stem.0.weight" if convstem else f"{prefix}stem.0.weight"
  patch = convnext.PATCH if convstem else size(stem, 2, 4)
  side = patch * 2 ** (len(depths) - 1)
  return Recognised(
    prefix,
    convnext.name_of(depths, widths, patch, convstem),
    num_classes=size(f"{prefix}head.fc.weight", 0, 2),
    channels=size(stem, 1, 4),
    image_size=(side, side),
    activation="gelu",
  )
