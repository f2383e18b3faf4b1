"""JPEG compression in array operations: quantised 8x8 cosine transforms, with chroma at half resolution."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import fft

_BLOCK = 8
# The example tables of the standard (ITU-T T.81, annex K.1), for quality 50.
_LUMINANCE = """
16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99
"""
_CHROMINANCE = """
17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99
"""
# RGB levels to luminance and two chroma components (JFIF).
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)


def quantisation_table(text: str, quality: int) -> np.ndarray:
  """The table [8, 8] at a quality of 1..100, scaled as libjpeg does."""
  scale = 5000 // quality if quality < 50 else 200 - 2 * quality
  base = np.array(text.split(), np.int64).reshape(_BLOCK, _BLOCK)
  return np.clip((base * scale + 50) // 100, 1, 255).astype(np.float32)


def _padded(plane: Array, multiple: int) -> Array:
  """Pads planes [batch, h, w] at their lower and right edges to a multiple of `multiple`, by repeating the edges."""
  extra = [-size % multiple for size in plane.shape[1:]]
  return jnp.pad(plane, ((0, 0), (0, extra[0]), (0, extra[1])), mode="edge")


def _code(plane: Array, table: np.ndarray) -> Array:
  """Encodes and decodes planes [batch, h, w] of levels 0..255."""
  batch, height, width = plane.shape
  whole = _padded(plane, _BLOCK)
  rows, columns = whole.shape[1] // _BLOCK, whole.shape[2] // _BLOCK
  blocks = whole.reshape(batch, rows, _BLOCK, columns, _BLOCK) - 128.0
  basis = fft.dct(np.eye(_BLOCK), axis=0, norm="ortho").astype(np.float32)  # [frequency, place]
  transform = lambda x, matrix: jnp.einsum("ui,brick,vk->brucv", matrix, x, matrix)
  place = table[:, None, :]
  coded = jnp.round(transform(blocks, basis) / place) * place
  decoded = transform(coded, basis.T).reshape(whole.shape) + 128.0
  return jnp.clip(jnp.round(decoded), 0.0, 255.0)[:, :height, :width]


def _halved(plane: Array) -> Array:
  """Halves the size: the means of 2x2 pixels."""
  whole = _padded(plane, 2)
  batch, height, width = whole.shape
  return jnp.mean(whole.reshape(batch, height // 2, 2, width // 2, 2), axis=(2, 4))


def _doubled(plane: Array, height: int, width: int) -> Array:
  """Doubles the size, with linear interpolation between pixel centres."""
  shape = (plane.shape[0], 2 * plane.shape[1], 2 * plane.shape[2])
  return jax.image.resize(plane, shape, "linear")[:, :height, :width]


def jpeg(images: Array, quality: int) -> Array:
  """Images [batch, h, w, c] in [0, 1] after JPEG compression with a quality of 1..100.

  Three channels are RGB, with chroma at half resolution (4:2:0); with any other number, each channel is a grey plane.
  Grey images are within one level of libjpeg's nearly everywhere; small colour images differ by about one level on
  average.
  """
  levels = jnp.round(255.0 * images)
  luminance, chrominance = (quantisation_table(text, quality) for text in (_LUMINANCE, _CHROMINANCE))
  _, height, width, channels = images.shape
  if channels != 3:
    planes = [_code(levels[..., channel], luminance) for channel in range(channels)]
    return jnp.stack(planes, axis=-1) / 255.0
  ycc = levels @ _TO_YCC.T + jnp.array([0.0, 128.0, 128.0])
  planes = [_code(jnp.round(ycc[..., 0]), luminance)]
  planes += [
    _doubled(_code(jnp.round(_halved(ycc[..., channel])), chrominance), height, width) - 128.0 for channel in (1, 2)
  ]
  rgb = jnp.stack(planes, axis=-1) @ np.linalg.inv(_TO_YCC).astype(np.float32).T
  return jnp.clip(jnp.round(rgb), 0.0, 255.0) / 255.0


def _blocks(image_shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
  """For each plane of images [h, w, c]: rows and columns of 8x8 blocks, and the side in pixels of one value."""
  height, width, channels = image_shape
  sides = (1, 2, 2) if channels == 3 else (1,) * channels
  return [(-(-height // (side * _BLOCK)), -(-width // (side * _BLOCK)), side) for side in sides]


def num_coefficients(image_shape: tuple[int, ...]) -> int:
  """The number of JPEG coefficients of an image [h, w, c]; if it has three channels, chroma is at half resolution."""
  return sum(rows * columns * _BLOCK**2 for rows, columns, _ in _blocks(image_shape))


def from_coefficients(coefficients: Array, image_shape: tuple[int, ...]) -> Array:
  """The change of an image [h, w, c] in [0, 1] by a change of its quantised coefficients [n], at quality 50.

  The coefficients of luminance come first, then those of the two chroma planes; within a plane, block by block.
  """
  height, width, channels = image_shape
  basis = fft.dct(np.eye(_BLOCK), axis=0, norm="ortho").astype(coefficients.dtype)  # [frequency, place]
  planes, first = [], 0
  for index, (rows, columns, side) in enumerate(_blocks(image_shape)):
    table = quantisation_table(_CHROMINANCE if channels == 3 and index else _LUMINANCE, 50)
    shape = (rows, columns, _BLOCK, _BLOCK)
    blocks = coefficients[first : first + math.prod(shape)].reshape(shape) * table.astype(basis.dtype)
    first += math.prod(shape)
    plane = jnp.einsum("ui,rcuv,vk->rick", basis, blocks, basis).reshape(rows * _BLOCK, columns * _BLOCK)
    planes.append(jnp.repeat(jnp.repeat(plane, side, axis=0), side, axis=1)[:height, :width])
  change = jnp.stack(planes, axis=-1) / 255.0
  return change @ np.linalg.inv(_TO_YCC).T.astype(change.dtype) if channels == 3 else change
