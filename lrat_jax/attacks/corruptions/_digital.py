"""Digital corruptions of an image [h, w, c]: contrast, saturation, pixelation, JPEG and elastic transform."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import ndimage

from lrat_jax.attacks import _jpeg
from lrat_jax.attacks.corruptions import _filters
from lrat_jax.core.typing import OneKey


def contrast(key: OneKey, image: Array, factor: float) -> Array:
  means = jnp.mean(image, axis=(0, 1), keepdims=True)
  return (image - means) * factor + means


def saturate(key: OneKey, image: Array, strength: tuple[float, float]) -> Array:
  """The saturation in HSV times the first strength, plus the second; grey turns towards red, because its hue is 0."""
  factor, more = strength
  value, low = jnp.max(image, axis=-1, keepdims=True), jnp.min(image, axis=-1, keepdims=True)
  is_grey = value == low
  red = jnp.array([0.0, 1.0, 1.0], image.dtype)
  share = jnp.where(is_grey, red, (value - image) / jnp.where(is_grey, 1.0, value - low))
  saturation = jnp.where(is_grey, 0.0, (value - low) / jnp.where(value > 0, value, 1.0))
  return value * (1 - share * jnp.clip(factor * saturation + more, 0.0, 1.0))


def _box_matrix(size_in: int, size_out: int) -> np.ndarray:
  """Each output is the mean of the input pixels whose centres are in its box. [size_out, size_in]."""
  scale = size_in / size_out
  distances = np.arange(size_in) + 0.5 - (np.arange(size_out)[:, None] + 0.5) * scale
  half = 0.5 * max(scale, 1.0)
  inside = (distances > -half) & (distances <= half)
  return inside / inside.sum(axis=1, keepdims=True)


def pixelate(key: OneKey, image: Array, share: float) -> Array:
  """Scales each side down to that share, and up again."""
  matrices = []
  for size in image.shape[:2]:
    small = max(int(size * share), 1)
    matrices.append((_box_matrix(small, size) @ _box_matrix(size, small)).astype(np.float32))
  return _filters.along_both(image, *matrices)


def jpeg_compression(key: OneKey, image: Array, quality: int) -> Array:
  return _jpeg.jpeg(image[None], quality)[0]


def _sample(image: Array, rows: Array, columns: Array, mode: str) -> Array:
  plane = lambda plane: ndimage.map_coordinates(plane, [rows, columns], order=1, mode=mode)
  return jax.vmap(plane, in_axes=-1, out_axes=-1)(image)


def _tilted(image: Array, moves: Array, rows: Array, columns: Array) -> Array:
  """The image after the affine map that moves three points by `moves`; edges are mirrored.

  `moves` [3, 2] has columns and rows, in pixels.
  """
  height, width, _ = image.shape
  reach = min(height, width) // 3
  middle = np.array([width // 2, height // 2], np.float32)
  corners = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]], np.float32)
  moved = corners + moves
  # The vectors to which the map takes a step of one column, and of one row.
  (a, c), (b, d) = (moved[1] - moved[2]) / (2 * reach), (moved[0] - moved[1]) / (2 * reach)
  right, down = columns - moved[2, 0], rows - moved[2, 1]
  determinant = a * d - b * c
  source_columns = (d * right - b * down) / determinant + corners[2, 0]
  source_rows = (a * down - c * right) / determinant + corners[2, 1]
  return _sample(image, source_rows, source_columns, "mirror")


def bent(image: Array, corners: Array, field: Array, strength: tuple[float, float, float]) -> Array:
  """An image after an affine map, and then with each pixel moved by a smooth field.

  Args:
    image: float [h, w, c].
    corners: in [-1, 1], [3, 2], the moves of three points, columns and rows, as shares of the largest move.
    field: in [-1, 1], [2, h, w], columns and rows; it is blurred before it is used.
    strength: the field's size, its blur's deviation and the largest move of a corner, as shares of the shorter side.
  """
  size, deviation, most = (share * min(image.shape[:2]) for share in strength)
  rows, columns = jnp.meshgrid(*(jnp.arange(n, dtype=image.dtype) for n in image.shape[:2]), indexing="ij")
  tilted = _tilted(image, most * corners, rows, columns)
  matrices = [_filters.gaussian_matrix(n, deviation, "reflect", truncate=3.0) for n in image.shape[:2]]
  right, down = jnp.moveaxis(size * _filters.along_both(jnp.moveaxis(field, 0, -1), *matrices), -1, 0)
  return _sample(tilted, rows + down, columns + right, "reflect")


def elastic_transform(key: OneKey, image: Array, strength: tuple[float, float, float]) -> Array:
  for_corners, for_field = jax.random.split(key)
  corners = jax.random.uniform(for_corners, (3, 2), image.dtype, -1, 1)
  return bent(image, corners, jax.random.uniform(for_field, (2, *image.shape[:2]), image.dtype, -1, 1), strength)
