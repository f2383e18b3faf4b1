"""Decoders that change colours: each takes an image [h, w, c] and a latent, and is the identity if the latent is 0.

Images of one channel are greyscale: their value is changed like lightness.
"""

import itertools

import jax.numpy as jnp
import numpy as np
from jax import Array

from lrat_jax.attacks import _warps

CHANNELS = (1, 3)
# Number of points of the colour grid along lightness and the two chroma axes, as in the original.
_GRID = (16, 32, 32)
# Linear sRGB to XYZ (IEC 61966-2-1), and the D65 white point in CIE 1976 u', v'.
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9504]])
_WHITE = (0.1978, 0.4683)
# Below these values, the sRGB curve and lightness are linear.
_DARK_CODE, _DARK, _DARK_Y = 0.04045, 0.0031308, (6 / 29) ** 3
# Prevents division by 0 at black pixels.
_LEAST = 1e-3
# Standard deviation and radius of the filter for changes in HSV: three entries, which are nearly equal.
_HSV_DEVIATION, _HSV_RADIUS = 3.0, 1


def to_luv(image: Array) -> Array:
  """Converts sRGB [..., 3] in [0, 1] to (L* / 100, (u* + 100) / 200, (v* + 100) / 200)."""
  linear = jnp.where(image < _DARK_CODE, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
  x, y, z = jnp.moveaxis(linear @ _TO_XYZ.T.astype(image.dtype), -1, 0)
  total = jnp.maximum(x + 15 * y + 3 * z, 1e-10)
  lightness = jnp.where(y < _DARK_Y, (29 / 3) ** 3 * y, 116 * jnp.cbrt(y) - 16)
  u, v = 13 * lightness * (4 * x / total - _WHITE[0]), 13 * lightness * (9 * y / total - _WHITE[1])
  return jnp.stack([lightness / 100, (u + 100) / 200, (v + 100) / 200], axis=-1)


def from_luv(luv: Array) -> Array:
  """The inverse of `to_luv`, in [0, 1]: a colour outside sRGB is clipped to one nearby."""
  lightness = 100 * jnp.clip(luv[..., 0], 0, 1)
  u, v = 200 * luv[..., 1] - 100, 200 * luv[..., 2] - 100
  y = jnp.where(lightness <= 8, lightness * (3 / 29) ** 3, ((lightness + 16) / 116) ** 3)
  u, v = u + 13 * lightness * _WHITE[0], v + 13 * lightness * _WHITE[1]  # 13 L* u' and 13 L* v'
  v = jnp.maximum(v, _LEAST)
  xyz = jnp.stack([9 * y * u / (4 * v), y, y * (156 * lightness - 3 * u - 20 * v) / (4 * v)], axis=-1)
  linear = jnp.clip(xyz, 0, 1.1) @ np.linalg.inv(_TO_XYZ).T.astype(luv.dtype)
  curved = 1.055 * jnp.maximum(linear, _DARK) ** (1 / 2.4) - 0.055
  return jnp.clip(jnp.where(linear < _DARK, 12.92 * linear, curved), 0, 1)


def grid_shape(image_shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of the latent of `recolor`: a grid of shifts of colours or of grey values."""
  return (*_GRID, 3) if image_shape[-1] == 3 else (_GRID[0], 1)


def _interpolated(grid: Array, colours: Array) -> Array:
  """Interpolates a grid [n1, ..., nd, d] over [0, 1]^d linearly at colours [..., d]."""
  sizes = np.array(grid.shape[:-1])
  scaled = colours * (sizes - 1).astype(colours.dtype)
  low = jnp.floor(scaled)
  share = scaled - low
  found = jnp.zeros_like(colours)
  for corner in itertools.product((0, 1), repeat=len(sizes)):
    place = jnp.clip(low.astype(jnp.int32) + np.array(corner), 0, sizes - 1)
    weight = jnp.prod(jnp.where(np.array(corner) == 1, share, 1 - share), axis=-1, keepdims=True)
    found += weight * grid[tuple(jnp.moveaxis(place, -1, 0))]
  return found


def recolor(image: Array, grid: Array, drawn: None) -> Array:
  """Shifts every colour by the grid's value at it: ReColorAdv (arXiv:1906.00001) in CIELUV, scaled as in `to_luv`.

  The original also keeps the grid's points inside sRGB; here only the image's colours are clipped to it.
  """
  if image.shape[-1] == 1:
    return image + _interpolated(grid, image)
  luv = to_luv(image)
  # The difference of two conversions, so that their rounding does not change colours with a shift of 0.
  return image + (from_luv(luv + _interpolated(grid, luv)) - from_luv(luv))


def to_hsv(image: Array) -> Array:
  """Converts RGB [..., 3] in [0, 1] to hue (in turns), saturation and value, in [0, 1]."""
  value, least = jnp.max(image, axis=-1), jnp.min(image, axis=-1)
  chroma = value - least
  red, green, blue = jnp.moveaxis(image, -1, 0)
  safe = jnp.where(chroma > 0, chroma, 1.0)
  hues = [((green - blue) / safe) % 6, (blue - red) / safe + 2, (red - green) / safe + 4]
  hue = jnp.where(value == red, hues[0], jnp.where(value == green, hues[1], hues[2]))
  saturation = chroma / jnp.where(value > 0, value, 1.0)
  return jnp.stack([jnp.where(chroma > 0, hue, 0.0) / 6, saturation, value], axis=-1)


def from_hsv(hsv: Array) -> Array:
  """The inverse of `to_hsv`."""
  hue, saturation, value = (hsv[..., i, None] for i in range(3))
  place = (np.array([5.0, 3.0, 1.0], hsv.dtype) + 6 * hue) % 6
  return value * (1 - saturation * jnp.clip(jnp.minimum(place, 4 - place), 0, 1))


def hsv(image: Array, change: Array, drawn: None) -> Array:
  """Adds a smoothed change [h, w, c] to hue, saturation and value, each clipped to [0, 1] (arXiv:1908.08016v3)."""
  maps = (_warps.smoothing(size, _HSV_DEVIATION, _HSV_RADIUS) for size in image.shape[:2])
  change = _warps.smoothed(change, *maps)
  if image.shape[-1] == 1:
    return image + change
  return from_hsv(jnp.clip(to_hsv(image) + change, 0, 1))
