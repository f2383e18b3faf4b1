"""XCiT: a transformer with attention between channels (El-Nouby et al., arXiv:2106.09681).

As timm defines it, and as Debenedetti et al. (arXiv:2209.07399) train it adversarially: for CIFAR the first
convolutions of the stem keep the resolution, so that a patch has 4 x 4 pixels instead of 16 x 16.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from lrat_jax.core.typing import AxisName
from lrat_jax.models.layers import FEATURES, BatchNorm, ConvNorm, activation, blocks, stage_ends
from lrat_jax.models.transformer_layers import Dense, LayerNorm, LayerScale, Mlp, split_heads

# The strides of the stem's convolutions, by the side of a patch in pixels.
STEMS = {4: (1, 1, 2, 2), 8: (2, 2, 2), 16: (2, 2, 2, 2)}
# The number of sines and cosines for a row, and the same number for a column.
_FREQUENCIES = 32
# Channels, and attention heads.
SIZES = {"nano": (128, 4), "tiny": (192, 4), "small": (384, 8), "medium": (512, 8), "large": (768, 16)}
_NUMBER = r"([1-9]\d{0,3})"
SPELLING = rf"xcit_(?:({'|'.join(SIZES)})_{_NUMBER}|{_NUMBER}_{_NUMBER}_{_NUMBER})_p({'|'.join(map(str, STEMS))})"
NAMES = ("xcit_SIZE_DEPTH_pPATCH", "xcit_DEPTH_WIDTH_HEADS_pPATCH")


def fourier_positions(height: int, width: int) -> np.ndarray:
  """float32 [height, width, 64]: alternating sines and cosines of the row, in (0, 2 pi], and then of the column."""
  index = np.arange(_FREQUENCIES, dtype=np.float32)
  periods = np.float32(10000) ** (2 * (index // 2) / _FREQUENCIES)

  def encode(count: int) -> np.ndarray:
    places = np.arange(1, count + 1, dtype=np.float32)
    angles = (places / (places[-1] + np.float32(1e-6)) * np.float32(2 * np.pi))[:, None] / periods
    return np.where(index % 2 == 0, np.sin(angles), np.cos(angles))

  shape = (height, width, _FREQUENCIES)
  rows, columns = encode(height)[:, None], encode(width)[None, :]
  return np.concatenate([np.broadcast_to(rows, shape), np.broadcast_to(columns, shape)], axis=-1)


def _unit(x: Array) -> Array:
  """Float32 [batch, tokens, heads, channels], each channel scaled to norm 1 over the tokens; zeros stay zeros."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=1, keepdims=True), 1e-24))


class CrossCovarianceAttention(nn.Module):
  """Each channel becomes a mean of its head's channels, weighted by their similarity over the image (section 3.2)."""

  num_heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    tokens = x.reshape(x.shape[0], -1, x.shape[-1])
    qkv = Dense(3 * x.shape[-1], dtype=self.dtype)(tokens)
    queries, keys, values = split_heads(qkv, 3, self.num_heads)
    temperature = self.param("temperature", nn.initializers.ones, (self.num_heads, 1, 1), jnp.float32)
    alike = jnp.einsum("bnhc,bnhd->bhcd", _unit(queries), _unit(keys)) * temperature
    mixed = jnp.einsum("bhcd,bnhd->bnhc", nn.softmax(alike).astype(self.dtype), values)
    return Dense(x.shape[-1], dtype=self.dtype)(mixed.reshape(x.shape))


class LocalPatchInteraction(nn.Module):
  """Two depthwise 3x3 convolutions with activation and batch norm between them (section 3.3)."""

  dtype: Any
  axis_name: AxisName | None
  activation: str
  mean_sparse: bool

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    channels = x.shape[-1]
    first, second = (
      nn.Conv(channels, (3, 3), padding=1, feature_group_count=channels, dtype=self.dtype) for _ in range(2)
    )
    norm = BatchNorm(use_running_average=not train, axis_name=self.axis_name, dtype=self.dtype)
    return second(norm(activation(self.activation, self.mean_sparse)(first(x))))


class Block(nn.Module):
  """Attention between channels, local patch interaction and an MLP, each a residual branch after layer norm."""

  num_heads: int
  layer_scale: float
  dtype: Any
  axis_name: AxisName | None
  activation: str
  mean_sparse: bool

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    norm = lambda x: LayerNorm(dtype=self.dtype)(x)
    scale = lambda x: LayerScale(self.layer_scale, self.dtype)(x)
    x += scale(CrossCovarianceAttention(self.num_heads, self.dtype)(norm(x)))
    x += scale(LocalPatchInteraction(self.dtype, self.axis_name, self.activation, self.mean_sparse)(norm(x), train))
    return x + scale(Mlp(4 * x.shape[-1], self.dtype, self.activation, self.mean_sparse)(norm(x)))


class ClassAttention(nn.Module):
  """Attention of the class token to all tokens, including itself: [batch, 1 + tokens, c] -> [batch, 1, c]."""

  num_heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, _, channels = x.shape
    dense = lambda x: Dense(channels, dtype=self.dtype)(x)
    queries, keys, values = (split_heads(dense(tokens), 1, self.num_heads)[0] for tokens in (x[:, :1], x, x))
    attended = jax.nn.dot_product_attention(queries, keys, values, implementation="xla")
    return dense(attended.reshape(batch, 1, channels))


class ClassBlock(nn.Module):
  """Class attention and an MLP for the class token (Touvron et al., arXiv:2103.17239); see `norm_all` of XCiT.

  As in the code of the paper, the other tokens get their normalised values added, and at the end are added to
  themselves.
  """

  num_heads: int
  layer_scale: float
  norm_all: bool
  dtype: Any
  activation: str
  mean_sparse: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    norm = lambda x: LayerNorm(dtype=self.dtype)(x)
    scale = lambda x: LayerScale(self.layer_scale, self.dtype)(x)
    normed = norm(x)
    token = ClassAttention(self.num_heads, self.dtype)(normed)
    x += scale(jnp.concatenate([token, normed[:, 1:]], axis=1))
    x = norm(x) if self.norm_all else jnp.concatenate([norm(x[:, :1]), x[:, 1:]], axis=1)
    token = scale(Mlp(4 * x.shape[-1], self.dtype, self.activation, self.mean_sparse)(x[:, :1]))
    return x + jnp.concatenate([token, x[:, 1:]], axis=1)


class XCiT(nn.Module):
  """A convolutional stem, position encodings, `depth` blocks on the patches, two blocks on a class token, its logits.

  Attributes:
    patch: side of a patch, 4, 8 or 16 pixels; images may have any size.
    width: channels, a multiple of 8 and of num_heads.
    remat: see `layers.blocks`.
    layer_scale: initial factor of residual branches; in the paper 1 for 12 blocks and 1e-5 for more.
    norm_all: whether class blocks normalise all tokens before their MLP, as all but XCiT-N do, or only the class token.
    mean_sparse: whether a MeanSparse is placed before each activation.
  """

  num_classes: int
  patch: int = 16
  depth: int = 12
  width: int = 384
  num_heads: int = 8
  layer_scale: float = 1.0
  norm_all: bool = True
  dtype: Any = jnp.float32
  axis_name: AxisName | None = None
  activation: str = "gelu"
  mean_sparse: bool = False
  remat: bool = False

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    x, strides = images, STEMS[self.patch]
    activations = (self.activation, self.mean_sparse)
    activate = activation(*activations)
    for index, stride in enumerate(strides):
      x = x if index == 0 else activate(x)
      features = self.width // 2 ** (len(strides) - 1 - index)
      x = ConvNorm(features, stride=stride, dtype=self.dtype, axis_name=self.axis_name)(x, train)
    positions = fourier_positions(*x.shape[1:3])
    x += Dense(self.width, dtype=self.dtype, name="positions")(positions)
    make, make_last = blocks(Block, self.remat), blocks(ClassBlock, self.remat)
    for block in range(1, self.depth + 1):
      x = make(self.num_heads, self.layer_scale, self.dtype, self.axis_name, *activations)(x, train)
      if block in stage_ends(self.depth):
        self.sow(*FEATURES, x)
    token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width), jnp.float32)
    token = jnp.broadcast_to(token.astype(self.dtype), (len(x), 1, self.width))
    x = jnp.concatenate([token, x.reshape(len(x), -1, self.width)], axis=1)
    for _ in range(2):
      x = make_last(self.num_heads, self.layer_scale, self.norm_all, self.dtype, *activations)(x)
    token = LayerNorm(dtype=self.dtype)(x)[:, 0]
    return Dense(self.num_classes, dtype=self.dtype)(token)


def from_name(match: re.Match, **options: Any) -> XCiT:
  """The network of a name that SPELLING matches. Raises ValueError if its numbers do not fit a network."""
  size, *numbers = match.groups()
  of_size, *others, patch = (None if number is None else int(number) for number in numbers)
  depth, width, num_heads = (of_size, *SIZES[size]) if size else others
  if width % 8 or width % num_heads:
    raise ValueError(f"name={match[0]!r}: WIDTH of xcit_DEPTH_WIDTH_HEADS_pPATCH must be a multiple of 8 and of HEADS.")
  return XCiT(
    patch=patch,
    depth=depth,
    width=width,
    num_heads=num_heads,
    layer_scale=1.0 if depth <= 12 else 1e-5,
    norm_all=(width, num_heads) != SIZES["nano"],
    **options,
  )


def name_of(depth: int, width: int, num_heads: int, patch: int) -> str:
  """The inverse of `from_name`."""
  size = next((size for size, known in SIZES.items() if known == (width, num_heads)), None)
  return f"xcit_{f'{size}_{depth}' if size else f'{depth}_{width}_{num_heads}'}_p{patch}"
