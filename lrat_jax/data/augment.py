"""What happens to images on the device: to floats in [0, 1], random crops and flips with a key per image."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

AnyArray = TypeVar("AnyArray", np.ndarray, Array)


def to_float(images: AnyArray) -> AnyArray:
  """uint8 images in 0..255 as float32 in [0, 1]; floats as they are. On the host they stay there."""
  return images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images


def augment(keys: Array, images: Array, *, crop_padding: int, flip: bool) -> Array:
  """Random crops after padding with zeros by `crop_padding` pixels, and horizontal flips with probability 1/2.

  Args:
    keys: typed keys [batch], one per image.
    images: float [batch, h, w, c].
    crop_padding: 0 for no crops.
    flip: whether to flip.

  Returns:
    float [batch, h, w, c].
  """

  def one(key: Array, image: Array) -> Array:
    crop_key, flip_key = jax.random.split(key)
    if crop_padding:
      padded = jnp.pad(image, ((crop_padding, crop_padding), (crop_padding, crop_padding), (0, 0)))
      row, column = jax.random.randint(crop_key, (2,), 0, 2 * crop_padding + 1)
      image = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
    if flip:
      image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    return image

  return jax.vmap(one)(keys, images) if crop_padding or flip else images
