"""Decoders that overlay something on an image [h, w, c]: each is the identity where its latent is 0.

The strengths and constants are those of Kaufmann et al. (arXiv:1908.08016v3) for CIFAR-10.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import signal

# Values for images of 32 pixels: the side of a coarse pixel, and the side of a Gabor kernel as a share of the image.
_COARSE = 4
_GABOR_SIDE = 23 / 32
_GABOR_DEVIATION, _GABOR_DIRECTIONS, _GABOR_DENSITY, _GABOR_SLOWEST = 3.0, 3, 0.1, 3.0
# The factor by which each finer grid of fog adds less, and the colour of fog.
_FOG_DECAY = 3.0
_FOG_COLOUR = (0.485, 0.45, 0.406)


def coarse_shape(image_shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of the latent of `pixel`: one share for each channel of each coarse pixel."""
  height, width, channels = image_shape
  return -(-height // _COARSE), -(-width // _COARSE), channels


def pixel(image: Array, shares: Array, drawn: None) -> Array:
  """The image with each block of 4x4 pixels moved, by its share in [0, 1], towards the value of its first pixel."""
  places = np.ix_(*(np.arange(size) // _COARSE for size in image.shape[:2]))
  return image + shares[places] * (image[::_COARSE, ::_COARSE][places] - image)


def gabor_kernel(direction: Array | float, frequency: Array | float, size: int) -> Array:
  """A kernel [size, size]: a weighted sum of waves in three directions, in a Gaussian window.

  The first direction is `direction`, in half-turns; the others are 60 degrees apart. `frequency` is the number of waves
  across the kernel.
  """
  rows, columns = np.meshgrid(*2 * (np.linspace(-0.5, 0.5, size),), indexing="ij")
  window = np.exp(-0.5 * (rows**2 + columns**2) / (_GABOR_DEVIATION + 1e-3) ** 2)
  kernel = jnp.zeros((size, size))
  for turn in range(_GABOR_DIRECTIONS):
    angle = jnp.pi * (direction + turn / _GABOR_DIRECTIONS)
    wave = jnp.cos(2 * jnp.pi * frequency * (columns * jnp.cos(angle) + rows * jnp.sin(angle)))
    kernel += wave * window / (1 if turn == 0 else _GABOR_DIRECTIONS)
  return kernel


def draw_gabor(key: Array, image_shape: tuple[int, ...]) -> tuple[Array, Array]:
  """A kernel of random direction and frequency, and a random mask of the latent's entries that are used: a tenth."""
  kernel_key, mask_key = jax.random.split(key)
  size = 2 * (int(_GABOR_SIDE * min(image_shape[:2])) // 2) + 1
  slowest = min(_GABOR_SLOWEST, size / 4)
  direction, share = jax.random.uniform(kernel_key, (2,))
  kernel = gabor_kernel(direction, slowest + (size / 4 - slowest) * share, size)
  return kernel, jax.random.bernoulli(mask_key, _GABOR_DENSITY, image_shape)


def gabor(image: Array, amplitudes: Array, drawn: tuple[Array, Array]) -> Array:
  """The image plus the masked amplitudes [h, w, c], a sparse field, convolved with the kernel."""
  kernel, mask = drawn
  spread = lambda plane: signal.convolve(plane, kernel.astype(image.dtype), mode="same")
  return image + jax.vmap(spread, in_axes=-1, out_axes=-1)(jnp.where(mask, amplitudes, 0))


def fog_shape(image_shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of the latent of `fog`: a square whose side is the next power of 2."""
  return 2 * (2 ** math.ceil(math.log2(max(image_shape[:2]))),)


def _diamond_square(offsets: Array) -> Array:
  """A square grid [n, n], from coarse to fine: each point is the mean of the four around it plus its scaled offset."""
  points, step, scale = 0 * offsets, len(offsets), 1.0
  next_, last = -1, 1  # shifts of `jnp.roll` to the next and the previous point; the grid wraps around
  while step >= 2:
    half = step // 2
    corners = points[::step, ::step]
    sums = corners + jnp.roll(corners, next_, 0)
    sums += jnp.roll(sums, next_, 1)
    middles = sums / 4 + scale * offsets[half::step, half::step]
    above = middles + jnp.roll(middles, last, 0) + corners + jnp.roll(corners, next_, 1)
    left = middles + jnp.roll(middles, last, 1) + corners + jnp.roll(corners, next_, 0)
    points = points.at[half::step, half::step].set(middles)
    points = points.at[::step, half::step].set(above / 4 + scale * offsets[::step, half::step])
    points = points.at[half::step, ::step].set(left / 4 + scale * offsets[half::step, ::step])
    step, scale = half, scale / _FOG_DECAY
  return points


def fog(image: Array, offsets: Array, drawn: None) -> Array:
  """The image in fog; its density is the centre of a field of the diamond-square algorithm with these offsets."""
  height, width, channels = image.shape
  top, left = ((len(offsets) - size) // 2 for size in (height, width))
  density = jnp.clip(jnp.abs(_diamond_square(offsets)), 0, 1)[top : top + height, left : left + width, None]
  colour = np.array(_FOG_COLOUR if channels == 3 else (np.mean(_FOG_COLOUR),), image.dtype)
  return image + density * (colour - image)
