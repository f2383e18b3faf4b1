"""ConvNeXt (Liu et al., arXiv:2201.03545), with its patch stem or a ConvStem (Singh et al., arXiv:2303.01870)."""

import re
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.core.typing import AxisName
from lrat_jax.models.layers import FEATURES, blocks
from lrat_jax.models.mean_sparse import MeanSparse
from lrat_jax.models.transformer_layers import BiasedConv, ConvStem, Dense, LayerNorm, LayerScale, Mlp

# Number of blocks of each stage, and their channels.
SIZES = {
  "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
  "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
  "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
  "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}
_NUMBERS = r"[1-9]\d{0,3}(?:-[1-9]\d{0,3})*"
SPELLING = rf"convnext_(?:({'|'.join(SIZES)})|({_NUMBERS})_({_NUMBERS}))(?:_patch([1-9]\d?)|_convstem([23]?))?"
NAMES = ("convnext_SIZE", "convnext_SIZE_convstem", "convnext_DEPTHS_WIDTHS", "convnext_DEPTHS_WIDTHS_patchSIZE")
PATCH = 4


def convstem_layers(size: str | None) -> int:
  """The number of convolutions in the ConvStem of a size (Singh et al.): 3 for base and large, 2 for any other."""
  return 3 if size in ("base", "large") else 2


class ConvNeXtBlock(nn.Module):
  """A depthwise 7x7 convolution, layer norm and an MLP over the channels of each position.

  `mean_sparse` puts a MeanSparse before the MLP's activation and at the end of the branch.
  """

  dtype: Any
  activation: str
  mean_sparse: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels, init = x.shape[-1], nn.initializers.normal(0.02)
    y = nn.Conv(channels, (7, 7), padding=3, feature_group_count=channels, kernel_init=init, dtype=self.dtype)(x)
    y = Mlp(4 * channels, self.dtype, self.activation, self.mean_sparse)(LayerNorm(dtype=self.dtype)(y))
    y = LayerScale(1e-6, self.dtype)(y)
    return x + (MeanSparse()(y) if self.mean_sparse else y)


class PatchStem(nn.Module):
  """A convolution over non-overlapping patches, and layer norm."""

  features: int
  patch: int
  dtype: Any

  @nn.compact
  def __call__(self, images: Array) -> Array:
    square = (self.patch, self.patch)
    return LayerNorm(dtype=self.dtype)(BiasedConv(self.features, square, square, padding=0, dtype=self.dtype)(images))


class Downsample(nn.Module):
  """Layer norm, and a 2x2 convolution of stride 2."""

  features: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = LayerNorm(dtype=self.dtype)(x)
    return BiasedConv(self.features, (2, 2), (2, 2), padding=0, dtype=self.dtype)(x)


class ConvNeXt(nn.Module):
  """Stages of blocks; the resolution halves between stages. The mean over the image is layer-normed and classified.

  Attributes:
    depths, widths: number of blocks of each stage, and their channels.
    patch: side of the stem's patches.
    convstem: number of convolutions of a ConvStem that replaces the patches, 2 or 3; 0 for none. Its stride is 4.
    mean_sparse: whether to use MeanSparse as Amini et al. do (see ConvNeXtBlock), and before a ConvStem's activations.
    axis_name: accepted by every model; unused, as nothing is averaged over the batch here.
    remat: see `layers.blocks`.
  """

  num_classes: int
  depths: tuple[int, ...] = SIZES["tiny"][0]
  widths: tuple[int, ...] = SIZES["tiny"][1]
  patch: int = PATCH
  convstem: int = 0
  dtype: Any = jnp.float32
  axis_name: AxisName | None = None
  activation: str = "gelu"
  mean_sparse: bool = False
  remat: bool = False

  def _stem(self) -> nn.Module:
    width = self.widths[0]
    if self.convstem:
      widths = (width // 2, *([width // 4 * 3] if self.convstem == 3 else []), width)
      return ConvStem(widths, (2, 2, 1)[: self.convstem], None, self.dtype, self.activation, self.mean_sparse)
    return PatchStem(width, self.patch, self.dtype)

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    height, width = images.shape[1:3]
    stride = self.patch * 2 ** (len(self.depths) - 1)
    if min(height, width) < stride:
      raise ValueError(f"images of {height}x{width} are too small for this ConvNeXt, whose stride is {stride}.")
    x = self._stem()(images)
    make = blocks(ConvNeXtBlock, self.remat)
    for stage, (depth, features) in enumerate(zip(self.depths, self.widths, strict=True)):
      if stage > 0:
        x = Downsample(features, self.dtype)(x)
      for _ in range(depth):
        x = make(self.dtype, self.activation, self.mean_sparse)(x)
      self.sow(*FEATURES, x)
    x = LayerNorm(dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))
    return Dense(self.num_classes, dtype=self.dtype)(x)


def from_name(match: re.Match, **options: Any) -> ConvNeXt:
  """The network of a name that SPELLING matches. Raises ValueError if its numbers do not fit a network."""
  size, depths, widths, patch, convstem = match.groups()
  depths, widths = SIZES[size] if size else (tuple(map(int, text.split("-"))) for text in (depths, widths))
  if len(depths) != len(widths):
    raise ValueError(f"name={match[0]!r}: DEPTHS and WIDTHS of convnext_DEPTHS_WIDTHS must have the same length.")
  if convstem is not None and widths[0] % 4:
    raise ValueError(f"name={match[0]!r}: a ConvStem needs a first width that is a multiple of 4.")
  layers = 0 if convstem is None else int(convstem or convstem_layers(size))
  return ConvNeXt(depths=depths, widths=widths, patch=int(patch or PATCH), convstem=layers, **options)


def name_of(depths: tuple[int, ...], widths: tuple[int, ...], patch: int, convstem: int) -> str:
  """The inverse of `from_name`."""
  size = next((size for size, numbers in SIZES.items() if numbers == (depths, widths)), None)
  name = f"convnext_{size or '_'.join('-'.join(map(str, numbers)) for numbers in (depths, widths))}"
  if convstem:
    name += f"_convstem{'' if convstem == convstem_layers(size) else convstem}"
  elif patch != PATCH:
    name += f"_patch{patch}"
  return name
