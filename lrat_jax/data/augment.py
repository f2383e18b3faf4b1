"""Processing of images on the device: conversion to floats in [0, 1], and augmentation with a key per image."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrat_jax.data import policies

AnyArray = TypeVar("AnyArray", np.ndarray, Array)


def to_float(images: AnyArray) -> AnyArray:
  """uint8 images in 0..255 as float32 in [0, 1]; floats unchanged. NumPy arrays stay on the host."""
  return images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images


# An image's key is split for its crop and its flip; for each other draw, one of these numbers is folded into it.
_RANDAUGMENT, _IDBH, _CUTOUT = 2, 3, 4


def augment(
  keys: Array,
  images: Array,
  *,
  crop_padding: int,
  flip: bool,
  randaugment: tuple[int, int] = (0, 0),
  idbh: str = "none",
  cutout: int = 0,
) -> Array:
  """Augments each image separately, in this order: crop, flip, RandAugment, IDBH, Cutout.

  Args:
    keys: typed keys [batch], one per image.
    images: float [batch, h, w, c] in [0, 1].
    crop_padding: number of pixels of zero padding on each side before a random crop; 0 for no crop.
    flip: whether to flip horizontally with probability 1/2.
    randaugment: number of operations, 0 for none, and magnitude (`policies.randaugment`).
    idbh: "none", or a version of `policies.idbh`.
    cutout: Cutout (DeVries & Taylor, arXiv:1708.04552): the side in pixels of a black square, centred anywhere in the
      image; 0 for none.

  Returns:
    float [batch, h, w, c] in [0, 1].
  """

  def one(key: Array, image: Array) -> Array:
    crop_key, flip_key = jax.random.split(key)
    if crop_padding:
      padded = jnp.pad(image, ((crop_padding, crop_padding), (crop_padding, crop_padding), (0, 0)))
      row, column = jax.random.randint(crop_key, (2,), 0, 2 * crop_padding + 1)
      image = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
    if flip:
      image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    if randaugment[0]:
      fields = {"num_ops": randaugment[0], "magnitude": randaugment[1]}
      image = policies.randaugment(jax.random.fold_in(key, _RANDAUGMENT), image, **fields)
    if idbh != "none":
      image = policies.idbh(jax.random.fold_in(key, _IDBH), image, version=idbh)
    if cutout:
      image = _cut_out(jax.random.fold_in(key, _CUTOUT), image, cutout)
    return image

  untouched = not (crop_padding or flip or randaugment[0] or cutout) and idbh == "none"
  return images if untouched else jax.vmap(one)(keys, images)


def _cut_out(key: Array, image: Array, side: int) -> Array:
  """Makes a square black: `side` pixels from side // 2 before its random centre, clipped at the image's edges."""
  box = jnp.ones(image.shape[:2], bool)
  for axis, length in enumerate(image.shape[:2]):
    start = jax.random.randint(jax.random.fold_in(key, axis), (), 0, length) - side // 2
    places = jnp.arange(length)
    box &= jnp.expand_dims((places >= start) & (places < start + side), 1 - axis)
  return jnp.where(box[..., None], 0.0, image)
