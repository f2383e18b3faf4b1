"""Swin: a transformer with attention inside windows, shifted in every second block (Liu et al., arXiv:2103.14030)."""

import itertools
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from lrat_jax.core.typing import AxisName
from lrat_jax.models.layers import FEATURES, blocks
from lrat_jax.models.mean_sparse import MeanSparse
from lrat_jax.models.transformer_layers import BiasedConv, Dense, LayerNorm, Mlp, SelfAttention

# Number of blocks of each stage, and channels of the first stage.
SIZES = {
  "tiny": ((2, 2, 6, 2), 96),
  "small": ((2, 2, 18, 2), 96),
  "base": ((2, 2, 18, 2), 128),
  "large": ((2, 2, 18, 2), 192),
}
SPELLING = (
  rf"swin_(?:({'|'.join(SIZES)})|([1-9]\d?(?:-[1-9]\d?)*)_([1-9]\d{{0,3}})_patch([1-9]\d?))"
  r"_window([1-9]\d?)(_eps1e-6)?"
)
NAMES = ("swin_SIZE_windowSIDE", "swin_DEPTHS_WIDTH_patchSIDE_windowSIDE", "swin_..._eps1e-6")
_PATCH, _HEAD_CHANNELS = 4, 32
# Epsilon of layer norm in timm and in MIMIR (Xu et al., arXiv:2312.04960).
_EPSILON, MIMIR_EPSILON = 1e-5, 1e-6
# Added to the attention scores of two places that share a window only because the image was rolled around its edge.
_APART = -100.0


def relative_positions(height: int, width: int) -> np.ndarray:
  """int [places, places] for the height * width places of a window: the bias table's row for each pair's offset."""
  rows, columns = (places.ravel() for places in np.mgrid[:height, :width])
  down = rows[:, None] - rows[None, :] + height - 1
  right = columns[:, None] - columns[None, :] + width - 1
  return down * (2 * width - 1) + right


def to_windows(x: Any, window: tuple[int, int]) -> Any:
  """[n, h, w, c] -> [n * windows, places, c]; windows are in row-major order."""
  (batch, height, width, channels), (rows, columns) = x.shape, window
  x = x.reshape(batch, height // rows, rows, width // columns, columns, channels)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, channels)


def from_windows(windows: Array, shape: tuple[int, ...], window: tuple[int, int]) -> Array:
  """The inverse of `to_windows` for x of the given shape."""
  (batch, height, width, channels), (rows, columns) = shape, window
  windows = windows.reshape(batch, height // rows, width // columns, rows, columns, channels)
  return windows.transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def shift_mask(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> np.ndarray:
  """float32 [windows, places, places]: 0 between places that are also together in the image, -100 between others.

  After the shift, the last windows contain places from both edges.
  """
  rows, columns = (np.where(np.arange(length) < length - step, 0, 1) for length, step in zip(size, shift, strict=True))
  parts = to_windows((2 * rows[:, None] + columns[None, :])[None, :, :, None], window)[..., 0]
  return np.where(parts[:, :, None] == parts[:, None, :], 0, _APART).astype(np.float32)


class WindowAttention(nn.Module):
  """Attention inside windows, with a learned bias for each head and each offset between two places.

  With `shifted`, windows are moved by half a window down and to the right, in each direction in which the image has
  more than one window.
  """

  window: int
  shifted: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, height, width, channels = x.shape
    window = min(self.window, height), min(self.window, width)
    if height % window[0] or width % window[1]:
      raise ValueError(f"{height}x{width} patches cannot be divided into windows of {self.window}x{self.window}.")
    heads = channels // _HEAD_CHANNELS
    distances = (2 * window[0] - 1) * (2 * window[1] - 1)
    table = self.param("bias_table", nn.initializers.normal(0.02), (distances, heads), jnp.float32)
    bias = table[relative_positions(*window)].transpose(2, 0, 1)[None]
    half = lambda side, length: side // 2 if self.shifted and length > side else 0
    shift = half(window[0], height), half(window[1], width)
    if any(shift):
      bias = bias + shift_mask((height, width), window, shift)[:, None]
      bias = jnp.tile(bias, (batch, 1, 1, 1))
    shifted = jnp.roll(x, [-step for step in shift], axis=(1, 2))
    attended = SelfAttention(heads, self.dtype)(to_windows(shifted, window), bias.astype(self.dtype))
    return jnp.roll(from_windows(attended, x.shape, window), shift, axis=(1, 2))


class Block(nn.Module):
  """Attention inside windows and an MLP, each with layer norm before it and a shortcut around it.

  `mean_sparse` puts a MeanSparse after each sum, at the end of the MLP and before the MLP's activation.
  """

  window: int
  shifted: bool
  epsilon: float
  dtype: Any
  activation: str
  mean_sparse: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    norm = lambda x: LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
    sparse = lambda x: MeanSparse()(x) if self.mean_sparse else x
    x = sparse(x + WindowAttention(self.window, self.shifted, self.dtype)(norm(x)))
    y = Mlp(4 * x.shape[-1], self.dtype, self.activation, self.mean_sparse)(norm(x))
    return sparse(x + sparse(y))


class Merging(nn.Module):
  """Merges four neighbouring places into one: layer norm of all their channels, and a dense layer to half of these."""

  epsilon: float
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if x.shape[1] % 2 or x.shape[2] % 2:
      raise ValueError(f"{x.shape[1]}x{x.shape[2]} patches cannot be merged two by two.")
    quarters = [x[:, row::2, column::2] for column, row in itertools.product(range(2), range(2))]
    merged = LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(jnp.concatenate(quarters, axis=-1))
    return Dense(2 * x.shape[-1], use_bias=False, dtype=self.dtype)(merged)


class Swin(nn.Module):
  """Patches and stages of blocks; between stages the resolution halves and channels double. The mean is classified.

  Windows are as large as the image if the image is smaller. Raises ValueError for images whose patches do not form
  whole windows in each stage.

  Attributes:
    depths: number of blocks of each stage.
    width: channels of the first stage, 32 for each attention head.
    patch, window: sides in pixels and in patches.
    epsilon: of layer norm.
    mean_sparse: whether to use MeanSparse as Amini et al. do (see Block).
    axis_name: accepted by every model; unused, as nothing is averaged over the batch here.
    remat: see `layers.blocks`.
  """

  num_classes: int
  depths: tuple[int, ...] = SIZES["tiny"][0]
  width: int = SIZES["tiny"][1]
  patch: int = _PATCH
  window: int = 7
  epsilon: float = _EPSILON
  dtype: Any = jnp.float32
  axis_name: AxisName | None = None
  activation: str = "gelu"
  mean_sparse: bool = False
  remat: bool = False

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    height, width = images.shape[1:3]
    if height % self.patch or width % self.patch:
      raise ValueError(f"images of {height}x{width} cannot be divided into patches of {self.patch}x{self.patch}.")
    square = (self.patch, self.patch)
    norm = lambda x: LayerNorm(epsilon=self.epsilon, dtype=self.dtype)(x)
    x = norm(BiasedConv(self.width, square, square, padding=0, dtype=self.dtype)(images))
    make = blocks(Block, self.remat)
    for stage, depth in enumerate(self.depths):
      if stage > 0:
        x = Merging(self.epsilon, self.dtype)(x)
      for block in range(depth):
        x = make(self.window, block % 2 == 1, self.epsilon, self.dtype, self.activation, self.mean_sparse)(x)
      self.sow(*FEATURES, x)
    return Dense(self.num_classes, dtype=self.dtype)(jnp.mean(norm(x), axis=(1, 2)))


def from_name(match: re.Match, **options: Any) -> Swin:
  """The network of a name that SPELLING matches. Raises ValueError if its numbers do not fit a network."""
  size, depths, width, patch, window, mimir = match.groups()
  depths, width = SIZES[size] if size else (tuple(map(int, depths.split("-"))), int(width))
  if width % _HEAD_CHANNELS:
    raise ValueError(f"name={match[0]!r}: WIDTH of swin_DEPTHS_WIDTH_... must be a multiple of {_HEAD_CHANNELS}.")
  return Swin(
    depths=depths,
    width=width,
    patch=int(patch or _PATCH),
    window=int(window),
    epsilon=MIMIR_EPSILON if mimir else _EPSILON,
    **options,
  )


def name_of(depths: tuple[int, ...], width: int, patch: int, window: int, epsilon: float = _EPSILON) -> str:
  """The inverse of `from_name`."""
  size = next((size for size, known in SIZES.items() if (*known, patch) == (depths, width, _PATCH)), None)
  blocks = "-".join(map(str, depths))
  name = f"swin_{size or f'{blocks}_{width}_patch{patch}'}_window{window}"
  return name + ("" if epsilon == _EPSILON else "_eps1e-6")
