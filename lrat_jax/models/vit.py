"""Vision transformers: ViT (Dosovitskiy et al., arXiv:2010.11929) and DeiT (Touvron et al., arXiv:2012.12877).

DeiT without distillation is the same network as ViT; the two names stand for different training recipes. Optionally
with the ConvStem of Singh et al. (arXiv:2303.01870).
"""

import re
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.core.typing import AxisName
from lrat_jax.models.layers import FEATURES, blocks, stage_ends
from lrat_jax.models.transformer_layers import BiasedConv, ConvStem, Dense, LayerNorm, Mlp, SelfAttention, torch_init


class Size(NamedTuple):
  """Number of blocks, channels, and attention heads."""

  depth: int
  width: int
  num_heads: int


SIZES = {"tiny": Size(12, 192, 3), "small": Size(12, 384, 6), "base": Size(12, 768, 12), "large": Size(24, 1024, 16)}
_NUMBER = r"([1-9]\d{0,3})"
SPELLING = (
  rf"(?:vit|deit)_(?:({'|'.join(SIZES)})|{_NUMBER}_{_NUMBER}_{_NUMBER})_([1-9]\d?)(?:_convstem((?:[1-9]\d{{0,2}})?))?"
)
NAMES = ("vit_SIZE_PATCH", "vit_SIZE_PATCH_convstem", "vit_DEPTH_WIDTH_HEADS_PATCH")
# Channels of a ConvStem's first convolution, the same in Singh et al.'s small and base networks.
_STEM = 48


class Block(nn.Module):
  """Attention and an MLP, each with layer norm before it and a shortcut around it."""

  num_heads: int
  dtype: Any
  activation: str
  mean_sparse: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = x + SelfAttention(self.num_heads, self.dtype)(LayerNorm(dtype=self.dtype)(x))
    return x + Mlp(4 * x.shape[-1], self.dtype, self.activation, self.mean_sparse)(LayerNorm(dtype=self.dtype)(x))


class VisionTransformer(nn.Module):
  """Patches and a class token; the class token's features after the last block are classified.

  The position embedding is made for one image size, that of `init`. Raises ValueError for images with another number of
  patches.

  Attributes:
    patch: side of a patch.
    convstem: channels of the first convolution of a ConvStem that replaces the patches; each further convolution has
      twice as many, until the total stride is `patch`. 0 for none.
    axis_name: accepted by every model; unused, as nothing is averaged over the batch here.
    remat: see `layers.blocks`.
    mean_sparse: whether a MeanSparse is placed before each activation.
  """

  num_classes: int
  depth: int = 12
  width: int = 384
  num_heads: int = 6
  patch: int = 16
  convstem: int = 0
  dtype: Any = jnp.float32
  axis_name: AxisName | None = None
  activation: str = "gelu"
  mean_sparse: bool = False
  remat: bool = False

  def _embed(self) -> nn.Module:
    if self.convstem:
      layers = self.patch.bit_length() - 1
      widths = tuple(self.convstem * 2**layer for layer in range(layers))
      return ConvStem(widths, (2,) * layers, self.width, self.dtype, self.activation, self.mean_sparse)
    square = (self.patch, self.patch)
    return BiasedConv(self.width, square, square, padding=0, kernel_init=torch_init, dtype=self.dtype)

  def _positions(self, tokens: int, height: int, width: int) -> Array:
    shape = (1, tokens, self.width)
    if self.has_variable("params", "pos_embed"):
      found: tuple[int, ...] = self.get_variable("params", "pos_embed").shape
      if found != shape:
        raise ValueError(
          f"images of {height}x{width} make {tokens - 1} patches of {self.patch}x{self.patch}, but the network's "
          f"position embedding is for {found[1] - 1}."
        )
    return self.param("pos_embed", nn.initializers.normal(0.02), shape, jnp.float32).astype(self.dtype)

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    batch, height, width, _ = images.shape
    if height % self.patch or width % self.patch:
      raise ValueError(f"images of {height}x{width} cannot be divided into patches of {self.patch}x{self.patch}.")
    patches = self._embed()(images).reshape(batch, -1, self.width)
    token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, self.width), jnp.float32)
    token = jnp.broadcast_to(token.astype(self.dtype), (batch, 1, self.width))
    x = jnp.concatenate([token, patches], axis=1)
    x = x + self._positions(x.shape[1], height, width)
    make = blocks(Block, self.remat)
    for block in range(1, self.depth + 1):
      x = make(self.num_heads, self.dtype, self.activation, self.mean_sparse)(x)
      if block == self.depth:  # of its outputs only the class token is used
        self.sow(*FEATURES, x[:, None, :1])
      elif block in stage_ends(self.depth):
        self.sow(*FEATURES, x[:, 1:].reshape(batch, height // self.patch, width // self.patch, self.width))
    x = LayerNorm(dtype=self.dtype)(x[:, 0])  # only of the class token: the other tokens are not used
    return Dense(self.num_classes, dtype=self.dtype)(x)


def from_name(match: re.Match, **options: Any) -> VisionTransformer:
  """The network of a name that SPELLING matches. Raises ValueError if its numbers do not fit a network."""
  size, *numbers, patch, convstem = match.groups()
  size = SIZES[size] if size else Size(*map(int, numbers))
  if size.width % size.num_heads:
    raise ValueError(f"name={match[0]!r}: WIDTH of vit_DEPTH_WIDTH_HEADS_PATCH must be a multiple of HEADS.")
  patch = int(patch)
  if convstem is not None and (patch == 1 or patch.bit_count() != 1):
    raise ValueError(f"name={match[0]!r}: a ConvStem needs a PATCH that is a power of 2, such as 16.")
  first = 0 if convstem is None else int(convstem or _STEM)
  return VisionTransformer(**size._asdict(), patch=patch, convstem=first, **options)


def name_of(depth: int, width: int, num_heads: int, patch: int, convstem: int) -> str:
  """The inverse of `from_name`."""
  numbers = Size(depth, width, num_heads)
  size = next((size for size, known in SIZES.items() if known == numbers), None)
  name = f"vit_{size or '_'.join(map(str, numbers))}_{patch}"
  return f"{name}_convstem{'' if convstem == _STEM else convstem}" if convstem else name
