"""Augmentation on the device: only shifts and flips, a key per image, no change if it is off."""

import jax
import jax.numpy as jnp
import numpy as np

from lrat_jax import data

IMAGES = jax.random.uniform(jax.random.key(0), (64, 6, 5, 2))
KEYS = jax.random.split(jax.random.key(1), 64)


def test_bytes_become_floats_in_range():
  converted = data.to_float(jnp.array([0, 51, 255], jnp.uint8))
  np.testing.assert_allclose(converted, [0, 0.2, 1])
  assert data.to_float(IMAGES) is IMAGES


def test_off_means_untouched():
  np.testing.assert_array_equal(data.augment(KEYS, IMAGES, crop_padding=0, flip=False), IMAGES)


def test_flips_turn_about_half_of_the_images():
  flipped = np.asarray(data.augment(KEYS, IMAGES, crop_padding=0, flip=True))
  turned = (flipped == IMAGES[:, :, ::-1]).all(axis=(1, 2, 3))
  assert (turned | (flipped == IMAGES).all(axis=(1, 2, 3))).all()
  assert 16 < turned.sum() < 48


def test_crops_are_windows_of_the_padded_image_and_all_occur():
  cropped = np.asarray(data.augment(KEYS, IMAGES, crop_padding=1, flip=False))
  padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = np.stack([padded[:, i : i + 6, j : j + 5] for i in range(3) for j in range(3)])
  matches = (windows == cropped).all(axis=(2, 3, 4))
  assert matches.any(axis=0).all() and matches.any(axis=1).all()


def test_an_image_is_augmented_by_its_own_key():
  whole = data.augment(KEYS, IMAGES, crop_padding=2, flip=True)
  part = data.augment(KEYS[5:9], IMAGES[5:9], crop_padding=2, flip=True)
  np.testing.assert_array_equal(part, whole[5:9])
