"""Noise on an image [h, w, c] in [0, 1], independent for each value."""

import jax
import jax.numpy as jnp
from jax import Array

from lrat_jax.core.typing import OneKey


def gaussian_noise(key: OneKey, image: Array, deviation: float) -> Array:
  return image + deviation * jax.random.normal(key, image.shape, image.dtype)


def shot_noise(key: OneKey, image: Array, most: int) -> Array:
  """Counts of photons: Poisson, with mean `most` where the image is 1."""
  # jax.random.poisson accepts only threefry keys, so one is drawn from a key of any kind.
  threefry = jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl="threefry2x32")
  return jax.random.poisson(threefry, most * image).astype(image.dtype) / most


def impulse_noise(key: OneKey, image: Array, share: float) -> Array:
  """Each value becomes 0 or 1, equally likely, with probability `share`."""
  draws = jax.random.uniform(key, image.shape)
  return jnp.where(draws < share / 2, 0.0, jnp.where(draws < share, 1.0, image))


def speckle_noise(key: OneKey, image: Array, deviation: float) -> Array:
  """Gaussian noise proportional to the value."""
  return image + image * deviation * jax.random.normal(key, image.shape, image.dtype)
