"""RandAugment and IDBH: Pillow's operations, applied to each image at random with its own key."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lrat_jax.data import image_ops as ops

# RandAugment's magnitudes are 0..30.
MAX_MAGNITUDE = 30

# (image, strength) -> image
_Operation = Callable[[Array, ops.Strength], Array]


def _apply(index: Array, operations: Sequence[_Operation], image: Array, strengths: Array) -> Array:
  """Applies one operation with its strength. Under `vmap` all are computed, and one is kept for each image."""
  return jax.lax.switch(index, operations, image, strengths[index])


def _as_it_is(image: Array, _: ops.Strength) -> Array:
  return image


def _relative(operation: _Operation) -> _Operation:
  """The operation with 1 added to its strength."""
  return lambda image, strength: operation(image, 1.0 + strength)


_RANDAUGMENT: tuple[_Operation, ...] = (
  _as_it_is,
  ops.shear_x,
  ops.shear_y,
  ops.translate_x,
  ops.translate_y,
  ops.rotate,
  _relative(ops.brightness),
  _relative(ops.color),
  _relative(ops.contrast),
  _relative(ops.sharpness),
  ops.posterize,
  ops.solarize,
  lambda image, _: ops.autocontrast(image),
  lambda image, _: ops.equalize(image),
)
# Operations whose strength has a random sign: from the shears to sharpness.
_SIGNED = tuple(1 <= number <= 9 for number in range(len(_RANDAUGMENT)))


def _strengths(magnitude: int, height: int, width: int) -> list[float]:
  """The strength of each operation of RandAugment, from the weakest at 0 to torchvision's strongest at 30."""
  share = magnitude / MAX_MAGNITUDE
  shift = [float(int(150 / 331 * side * share)) for side in (width, height)]
  return [
    0,
    0.3 * share,
    0.3 * share,
    *shift,
    30 * share,
    *[0.9 * share] * 4,
    8 - round(4 * share),
    255 - 255 * share,
    0,
    0,
  ]


def randaugment(key: Array, image: Array, *, num_ops: int, magnitude: int) -> Array:
  """RandAugment (Cubuk et al., arXiv:1909.13719): `num_ops` operations, each one of 14 at random, of one magnitude.

  The operations and their ranges are those of torchvision's `RandAugment(num_ops, magnitude)` on a Pillow image:
  identity, shears, translations, rotation, brightness, colour, contrast, sharpness, posterize, solarize, autocontrast
  and equalize, with nearest-neighbour interpolation and black beyond the edge.

  Args:
    key: the image's own key.
    image: float [h, w, c] in [0, 1].
    magnitude: 0..30.
  """
  strengths = jnp.array(_strengths(magnitude, *image.shape[:2]))
  for draw in range(num_ops):
    which_key, sign_key = jax.random.split(jax.random.fold_in(key, draw))
    sign = jnp.where(jax.random.bernoulli(sign_key), -1.0, 1.0)
    signed = jnp.where(jnp.array(_SIGNED), sign * strengths, strengths)
    image = _apply(jax.random.randint(which_key, (), 0, len(_RANDAUGMENT)), _RANDAUGMENT, image, signed)
  return image


class _Space(NamedTuple):
  """The ranges and probabilities of a version of IDBH.

  Attributes:
    probabilities: of colour, brightness, contrast, sharpness, autocontrast, equalize, shears along x and y, rotation.
    shear: the largest, in radians; the smallest is 0.05.
    rotation: the largest, in whole degrees; the smallest is 1.
    shift: the largest total number of rows and columns by which an image is cropped and shifted.
    erasing: the probability that a rectangle is erased.
    erased: the largest share of the image that the rectangle takes; the smallest is 0.02.
  """

  probabilities: tuple[float, ...]
  shear: float
  rotation: int
  shift: int
  erasing: float
  erased: float = 0.33


_COLOUR = (0.125, 0.125, 0.125, 0.125, 0.125, 0.125, 0.0625, 0.0625, 0.125)
_SHAPE = (0.08, 0.08, 0.04, 0.08, 0.04, 0.08, 0.15, 0.15, 0.3)
IDBH = {
  "cifar10_weak": _Space(_COLOUR, 0.15, 10, 10, 0.5),
  "cifar10_strong": _Space(_COLOUR, 0.15, 10, 10, 1.0),
  "svhn": _Space(_SHAPE, 0.35, 30, 8, 1.0, 0.5),
}


_COLOUR_SHAPE: tuple[_Operation, ...] = (
  ops.color,
  ops.brightness,
  ops.contrast,
  ops.sharpness,
  lambda image, _: ops.autocontrast(image),
  lambda image, _: ops.equalize(image),
  functools.partial(ops.shear_x, about_middle=True),
  functools.partial(ops.shear_y, about_middle=True),
  ops.rotate,
)


def _colour_shape(key: Array, image: Array, space: _Space) -> Array:
  which_key, strength_key, sign_key = jax.random.split(key, 3)
  drawn = jax.random.uniform(strength_key)
  sign = jnp.where(jax.random.bernoulli(sign_key), -1.0, 1.0)
  within = lambda low, high: low + (high - low) * drawn
  shear = jnp.tan(sign * within(0.05, space.shear))
  rotation = sign * jnp.floor(1 + space.rotation * drawn)
  strong, even = within(0.1, 1.9), within(0.5, 1.9)
  strengths = jnp.stack([strong, even, even, strong, drawn, drawn, shear, shear, rotation])
  index = jax.random.choice(which_key, len(_COLOUR_SHAPE), p=jnp.array(space.probabilities))
  return _apply(index, _COLOUR_SHAPE, image, strengths)


def crop_shift(key: Array, image: Array, *, most: int) -> Array:
  """IDBH's CropShift: crops a window of the image and puts it at another position in a black image.

  0..most rows and columns are cropped in total, divided between both at random. The window's position in the image is
  random, and so is its new position.
  """
  height, width, _ = image.shape
  sum_key, split_key, *place_keys = jax.random.split(key, 6)
  total = jax.random.randint(sum_key, (), 0, most + 1)
  of_columns = jax.random.randint(split_key, (), 0, total + 1)
  cropped = (total - of_columns, of_columns)
  starts = [jax.random.randint(k, (), 0, cropped[i % 2] + 1) for i, k in enumerate(place_keys)]
  window = image
  inside = jnp.ones((height, width), bool)
  for axis, side in enumerate((height, width)):
    places = jnp.arange(side) - starts[2 + axis]  # relative to the window
    taken = (places >= 0) & (places < side - cropped[axis])
    window = jnp.take(window, jnp.clip(places + starts[axis], 0, side - 1), axis=axis)
    inside &= jnp.expand_dims(taken, 1 - axis)
  return jnp.where(inside[..., None], window, 0.0)


def random_erasing(key: Array, image: Array, *, probability: float, most: float) -> Array:
  """Random Erasing (Zhong et al., arXiv:1708.04896): a black rectangle of 0.02 to `most` of the area, ratio 0.3 to 3.3.

  As in torchvision's `RandomErasing`, the first of ten draws that fits is used; if none fits, nothing is erased.
  """
  height, width, _ = image.shape
  coin_key, area_key, ratio_key, *place_keys = jax.random.split(key, 5)
  area = height * width * jax.random.uniform(area_key, (10,), minval=0.02, maxval=most)
  ratio = jnp.exp(jax.random.uniform(ratio_key, (10,), minval=jnp.log(0.3), maxval=jnp.log(3.3)))
  rows, columns = (jnp.round(jnp.sqrt(side)).astype(jnp.int32) for side in (area * ratio, area / ratio))
  fits = (rows < height) & (columns < width)
  first = jnp.argmax(fits)
  erased = jnp.any(fits) & jax.random.bernoulli(coin_key, probability)
  box = jnp.ones((height, width), bool)
  for axis, (side, length) in enumerate(((height, rows[first]), (width, columns[first]))):
    start = jax.random.randint(place_keys[axis], (), 0, jnp.maximum(side - length, 0) + 1)
    places = jnp.arange(side)
    box &= jnp.expand_dims((places >= start) & (places < start + length), 1 - axis)
  return jnp.where(erased & box[..., None], 0.0, image)


def idbh(key: Array, image: Array, *, version: str) -> Array:
  """IDBH (Li & Spratling, arXiv:2301.09879): CropShift, one operation on colour or shape, Random Erasing.

  The operations, their ranges and probabilities are those of the authors' code; the flip at the beginning of their
  code is `data.flip` here.

  Args:
    key: the image's own key.
    image: float [h, w, c] in [0, 1].
    version: one of `IDBH`, the three versions of the authors.
  """
  space = IDBH[version]
  shift_key, colour_key, erase_key = jax.random.split(key, 3)
  image = crop_shift(shift_key, image, most=space.shift)
  image = _colour_shape(colour_key, image, space)
  return random_erasing(erase_key, image, probability=space.erasing, most=space.erased)
