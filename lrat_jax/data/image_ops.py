"""Pillow's operations on one image, of which RandAugment and IDBH consist: pure, for `jit` and `vmap`.

Images are float [h, w, c] in [0, 1], with one channel or three. As in Pillow, operations on values work on the 256
levels of bytes, to which an image is rounded first; geometric ones only move pixels. For a byte image the result is
Pillow's.
"""

import jax
import jax.numpy as jnp
from jax import Array

# The strength of an operation; it may be traced.
Strength = float | Array

_LEVELS = 256
# Weights of red, green and blue in ITU-R 601-2 luma, as in Pillow's conversion to "L", in units of 1 / 65536.
_LUMA = (19595, 38470, 7471)
# Pillow computes positions in an image in units of 1 / 65536 of a pixel.
_FIXED = 65536.0
# Larger than any change of a level by a blend.
_FAR = 1e6


def _levels(image: Array) -> Array:
  return jnp.clip(jnp.round(image * 255.0), 0.0, 255.0)


def _image(levels: Array) -> Array:
  return levels / 255.0


def _grey(levels: Array) -> Array:
  """`convert("L")`: int32 [h, w]."""
  levels = levels.astype(jnp.int32)
  if levels.shape[-1] != 3:
    return levels[..., 0]
  return (jnp.sum(levels * jnp.array(_LUMA), axis=-1) + 32768) >> 16


def _blend(degenerate: Array, levels: Array, factor: Strength) -> Array:
  """`Image.blend`: the degenerate image for factor 0, the image for 1, extrapolated above; rounded down to levels."""
  # The limits change no value, but keep a compiler from fusing product and sum: Pillow rounds after each of them.
  change = jnp.clip(factor * (levels - degenerate), -_FAR, _FAR)
  return _image(jnp.floor(jnp.clip(degenerate + change, 0.0, 255.0)))


def brightness(image: Array, factor: Strength) -> Array:
  """`ImageEnhance.Brightness`: a blend of black and the image."""
  levels = _levels(image)
  return _blend(jnp.zeros_like(levels), levels, factor)


def color(image: Array, factor: Strength) -> Array:
  """`ImageEnhance.Color`: a blend of the image in grey and the image."""
  levels = _levels(image)
  return _blend(jnp.broadcast_to(_grey(levels)[..., None].astype(levels.dtype), levels.shape), levels, factor)


def contrast(image: Array, factor: Strength) -> Array:
  """`ImageEnhance.Contrast`: a blend of the image's mean grey, rounded to a level, and the image."""
  levels = _levels(image)
  grey = _grey(levels)
  mean = (2 * jnp.sum(grey) + grey.size) // (2 * grey.size)
  return _blend(jnp.full_like(levels, mean), levels, factor)


def sharpness(image: Array, factor: Strength) -> Array:
  """`ImageEnhance.Sharpness`: a blend of the image smoothed (`ImageFilter.SMOOTH`, not at its edges) and the image."""
  levels = _levels(image)
  if min(levels.shape[:2]) < 3:
    return _image(levels)
  height, width, _ = levels.shape
  shifted = (levels[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
  total = sum(shifted) + 4 * levels[1:-1, 1:-1]
  smooth = levels.at[1:-1, 1:-1].set(jnp.floor((2 * total + 13) / 26))
  return _blend(smooth, levels, factor)


def posterize(image: Array, bits: Strength) -> Array:
  """`ImageOps.posterize`: keeps the first `bits` of the 8 bits of a level."""
  levels, dropped = _levels(image).astype(jnp.int32), 8 - jnp.asarray(bits, jnp.int32)
  return _image(((levels >> dropped) << dropped).astype(image.dtype))


def solarize(image: Array, threshold: Strength) -> Array:
  """`ImageOps.solarize`: levels from the threshold on are inverted."""
  levels = _levels(image)
  return _image(jnp.where(levels < threshold, levels, 255.0 - levels))


def autocontrast(image: Array) -> Array:
  """`ImageOps.autocontrast`: each channel is stretched to the full range and rounded down to levels.

  Because of Pillow's rounding in double precision, some of its levels are one lower.
  """
  levels = _levels(image)
  low, high = (reduce(levels, axis=(0, 1)) for reduce in (jnp.min, jnp.max))
  stretched = ((levels - low).astype(jnp.int32) * 255) // jnp.maximum(high - low, 1).astype(jnp.int32)
  return _image(jnp.where(high > low, stretched.astype(levels.dtype), levels))


def equalize(image: Array) -> Array:
  """`ImageOps.equalize`: each channel's levels are spread so that equal ranges have about equally many pixels."""

  def of_channel(levels: Array) -> Array:
    counts = jnp.zeros(_LEVELS, jnp.int32).at[levels].add(1)
    step = (levels.size - counts[jnp.max(levels)]) // 255
    before = jnp.cumsum(counts) - counts
    table = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table[levels], levels)

  levels = _levels(image).astype(jnp.int32)
  return _image(jax.vmap(of_channel, in_axes=-1, out_axes=-1)(levels).astype(image.dtype))


def _affine(image: Array, a: Strength, b: Strength, c: Strength, d: Strength, e: Strength, f: Strength) -> Array:
  """`Image.transform`, AFFINE and NEAREST: (x, y) gets the pixel at (a x + b y + c, d x + e y + f), or black."""
  height, width, _ = image.shape
  fixed = lambda value: jnp.floor(value * _FIXED + 0.5).astype(jnp.int32)
  columns, rows = jnp.arange(width)[None, :], jnp.arange(height)[:, None]
  x = (fixed(c + 0.5 * (a + b)) + fixed(a) * columns + fixed(b) * rows) >> 16
  y = (fixed(f + 0.5 * (d + e)) + fixed(d) * columns + fixed(e) * rows) >> 16
  inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
  taken = image[jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)]
  return jnp.where(inside[..., None], taken, 0.0)


def shear_x(image: Array, slope: Strength, *, about_middle: bool = False) -> Array:
  """Each row is shifted to the left by `slope` times its distance from the top, or from the image's middle."""
  middle = 0.5 * image.shape[0] if about_middle else 0.0
  return _affine(image, 1.0, slope, -slope * middle, 0.0, 1.0, 0.0)


def shear_y(image: Array, slope: Strength, *, about_middle: bool = False) -> Array:
  """Each column is shifted upwards by `slope` times its distance from the left, or from the image's middle."""
  middle = 0.5 * image.shape[1] if about_middle else 0.0
  return _affine(image, 1.0, 0.0, 0.0, slope, 1.0, -slope * middle)


def translate_x(image: Array, pixels: Strength) -> Array:
  """Shifts the image to the right by whole pixels."""
  return _affine(image, 1.0, 0.0, -pixels, 0.0, 1.0, 0.0)


def translate_y(image: Array, pixels: Strength) -> Array:
  """Shifts the image downwards by whole pixels."""
  return _affine(image, 1.0, 0.0, 0.0, 0.0, 1.0, -pixels)


def rotate(image: Array, degrees: Strength) -> Array:
  """`Image.rotate` with NEAREST: counter-clockwise about the middle."""
  angle = -jnp.radians(degrees)
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  x, y = 0.5 * image.shape[1], 0.5 * image.shape[0]
  return _affine(image, cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y)
