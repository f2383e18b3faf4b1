"""Weather on an image [h, w, c] in [0, 1]: snow, frost, fog and brightness."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrat_jax.attacks.corruptions import _filters
from lrat_jax.core.typing import OneKey

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
# The range of angles of falling snow, in degrees.
_SNOW_ANGLES = (-135.0, -45.0)
# Measured on 32 x 32 crops of the original's five photographs: mean per channel, and mean deviation within a crop.
_FROST_COLOUR, _FROST_DEVIATION = np.array([0.56, 0.65, 0.69], np.float32), 0.09
_FROST_DECAY = 1.75


def _grey(image: Array) -> Array:
  """[h, w, 1]: the luminance of three channels, or the mean of any other number."""
  weights = _LUMINANCE if image.shape[-1] == 3 else np.full(image.shape[-1], 1 / image.shape[-1], np.float32)
  return jnp.sum(image * weights, axis=-1, keepdims=True)


def _as_bytes(layer: Array) -> Array:
  """Rounded down to a multiple of 1/255; 1e-3 is added so that float32 rounding does not lower whole levels."""
  return jnp.floor(255 * layer + 1e-3) / 255


def with_snow(image: Array, flakes: Array, angle: Array, strength: tuple) -> Array:
  """An image made paler, plus a layer of wind-blown flakes and the same layer turned by 180 degrees.

  Args:
    image: float [h, w, c].
    flakes: float [h, w, 1], from a standard normal distribution.
    angle: float [], in degrees.
    strength: mean and deviation of the flakes, their size, the smallest value of a flake, radius and deviation of the
      motion in pixels, and the share of the image that is kept.
  """
  mean, deviation, size, least, radius, spread, kept = strength
  layer = _filters.along_both(mean + deviation * flakes, *(_filters.zoom_matrix(n, size) for n in image.shape[:2]))
  layer = _as_bytes(jnp.where(layer < least, 0.0, jnp.clip(layer, 0.0, 1.0)))
  layer = _as_bytes(_filters.motion(layer, radius, spread, angle))  # rounded twice, so up to two levels darker
  paler = kept * image + (1 - kept) * jnp.maximum(image, 1.5 * _grey(image) + 0.5)
  return paler + layer + layer[::-1, ::-1]


def snow(key: OneKey, image: Array, strength: tuple) -> Array:
  for_flakes, for_angle = jax.random.split(key)
  flakes = jax.random.normal(for_flakes, (*image.shape[:2], 1), image.dtype)
  low, high = _SNOW_ANGLES
  return with_snow(image, flakes, jax.random.uniform(for_angle, (), image.dtype, low, high), strength)


def plasma(draws: Sequence[Array], decay: float) -> Array:
  """A fractal landscape in [0, 1], which wraps around, by the diamond-square algorithm.

  Args:
    draws: uniform in [-1, 1], [3, 2^i, 2^i] for i = 0, 1, ...: for the squares' centres, and for both kinds of edges.
    decay: the size of the heights is divided by decay^2 from one draw to the next.

  Returns:
    float [2^n, 2^n] for n draws.
  """
  heights, size = jnp.zeros_like(draws[0][0]), 1.0
  for middle, right, down in draws:
    beside = lambda array, axis, places: array + jnp.roll(array, places, axis)
    middles = beside(beside(heights, 0, -1), 1, -1) / 4 + size * middle
    rights = (beside(middles, 0, 1) + beside(heights, 1, -1)) / 4 + size * right
    downs = (beside(middles, 1, 1) + beside(heights, 0, -1)) / 4 + size * down
    rows = [jnp.stack(pair, axis=-1).reshape(len(heights), -1) for pair in ((heights, rights), (downs, middles))]
    heights = jnp.stack(rows, axis=1).reshape(2 * len(heights), -1)
    size /= decay**2
  heights = heights - heights.min()
  return heights / heights.max()


def _landscape(key: OneKey, image: Array, decay: float) -> Array:
  """The upper left corner [h, w, 1] of the smallest landscape that is large enough."""
  levels = max(int(np.ceil(np.log2(max(image.shape[:2])))), 1)
  shapes = [(3, 2**level, 2**level) for level in range(levels)]
  draws = [jax.random.uniform(jax.random.fold_in(key, i), s, image.dtype, -1, 1) for i, s in enumerate(shapes)]
  return plasma(draws, decay)[: image.shape[0], : image.shape[1], None]


def in_fog(image: Array, landscape: Array, thickness: float) -> Array:
  """An image plus a landscape [h, w, 1] in [0, 1], scaled so that no value exceeds the image's highest one."""
  highest = jnp.max(image)
  return (image + thickness * landscape) * highest / (highest + thickness)


def fog(key: OneKey, image: Array, strength: tuple[float, float]) -> Array:
  """Fog; `strength` is its thickness and the decay of its landscape."""
  thickness, decay = strength
  return in_fog(image, _landscape(key, image, decay), thickness)


def frost(key: OneKey, image: Array, strength: tuple[float, float]) -> Array:
  """A weighted sum of the image and a texture of ridges, which replaces the original's photographs.

  The texture has only their mean colour and deviation, so accuracies are not comparable.
  """
  kept, added = strength
  ridges = 1 - jnp.abs(2 * _landscape(key, image, _FROST_DECAY) - 1)
  scaled = (ridges - jnp.mean(ridges)) / jnp.maximum(jnp.std(ridges), 1e-6)
  colour = _FROST_COLOUR if image.shape[-1] == 3 else _FROST_COLOUR.mean()
  return kept * image + added * jnp.clip(colour + _FROST_DEVIATION * scaled, 0.0, 1.0)


def brightness(key: OneKey, image: Array, amount: float) -> Array:
  """Raises the largest channel (the value in HSV), and the others in proportion; black becomes grey."""
  value = jnp.max(image, axis=-1, keepdims=True)
  raised = jnp.minimum(value + amount, 1.0)
  return jnp.where(value > 0, image * raised / jnp.where(value > 0, value, 1.0), raised)
