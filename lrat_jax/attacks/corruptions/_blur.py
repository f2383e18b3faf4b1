"""Blur of an image [h, w, c] in [0, 1]: Gaussian, defocus, glass, motion and zoom."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import ndimage

from lrat_jax.attacks.corruptions import _filters
from lrat_jax.core.typing import OneKey

# The largest angle between motion and the horizontal, in degrees.
_MOTION_ANGLE = 45.0


def gaussian_blur(key: OneKey, image: Array, deviation: float) -> Array:
  return _filters.gaussian(image, deviation)


def _disk(radius: float, softness: float) -> np.ndarray:
  """A disk [k, k] that sums to 1, its edge softened by a Gaussian of three entries along each axis."""
  reach = int(radius) + 1  # one pixel more than the disk, for the soft edge
  places = np.arange(-reach, reach + 1)
  disk = (places[:, None] ** 2 + places**2 <= radius**2).astype(float)
  soft = np.exp(-(np.arange(-1, 2) ** 2) / (2 * softness**2))
  soft /= soft.sum()
  for axis in (0, 1):
    disk = ndimage.convolve1d(disk, soft, axis=axis, mode="constant")
  return disk / disk.sum()


def defocus_blur(key: OneKey, image: Array, strength: tuple[float, float]) -> Array:
  """The mean over a disk; `strength` is its radius in pixels, and the deviation that softens its edge."""
  return _filters.filtered(image, _disk(*strength))


def shuffled(image: Array, offsets: Array) -> Array:
  """Each pixel replaced by the one at its offset; the first two rows and columns are unchanged.

  The original is meant to swap the two pixels, but overwrites one before it reads it. The files of CIFAR-10-C were made
  in that way.

  Args:
    image: float [h, w, c].
    offsets: int [h, w, 2], columns and rows, each -1 or 0.
  """
  rows, columns = jnp.meshgrid(*(jnp.arange(size) for size in image.shape[:2]), indexing="ij")
  inside = (rows > 1) & (columns > 1)
  rows, columns = (jnp.where(inside, place + offsets[..., i], place) for place, i in ((rows, 1), (columns, 0)))
  return image[rows, columns]


def through_glass(image: Array, offsets: Array, deviation: float) -> Array:
  """The image blurred, shuffled by offsets [times, h, w, 2] one after another, and blurred again."""
  blurred = _filters.gaussian(image, deviation)
  for shift in offsets:
    blurred = shuffled(blurred, shift)
  return _filters.gaussian(blurred, deviation)


def glass_blur(key: OneKey, image: Array, strength: tuple[float, int]) -> Array:
  """Random shuffles of neighbouring pixels between two Gaussian blurs; `strength` is the deviation and their number."""
  deviation, times = strength
  return through_glass(image, jax.random.randint(key, (times, *image.shape[:2], 2), -1, 1), deviation)


def motion_blur(key: OneKey, image: Array, strength: tuple[int, float]) -> Array:
  """Blur along a line at a random angle; `strength` is its radius and deviation in pixels."""
  angle = jax.random.uniform(key, (), image.dtype, -_MOTION_ANGLE, _MOTION_ANGLE)
  return _filters.motion(image, *strength, angle)


def zoom_blur(key: OneKey, image: Array, end: float) -> Array:
  """The mean of the image and of its centre enlarged by 1, 1.01, 1.02 and so on, up to but without `end`."""
  factors = np.arange(1, end, 0.01)
  matrices = [np.stack([_filters.zoom_matrix(size, factor) for factor in factors]) for size in image.shape[:2]]
  add = lambda total, pair: (total + _filters.along_both(image, *pair), None)
  total, _ = jax.lax.scan(add, image, tuple(matrices))
  return total / (len(factors) + 1)
