"""RandAugment, IDBH, Cutout, Random Erasing: draws are as in the papers' code, with a separate key for each image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import data
from lrat_jax.data import image_ops, policies

KEYS = jax.random.split(jax.random.key(0), 512)
IMAGES = np.random.default_rng(1).integers(1, 256, (512, 9, 11, 3)).astype(np.float32) / 255
WHITE = jnp.ones((512, 16, 12, 1))
OFF = {"crop_padding": 0, "flip": False}


def _over(function, images=IMAGES, keys=KEYS, **options):
  return np.asarray(jax.jit(jax.vmap(functools.partial(function, **options)))(keys, images))


def test_one_operation_of_randaugment_is_each_of_the_14_at_its_strength():
  """Each image is the result of one of the operations, with either sign if it has one, and each of these occurs."""
  found = _over(policies.randaugment, num_ops=1, magnitude=15)
  strengths = policies._strengths(15, 9, 11)
  np.testing.assert_allclose(strengths, [0, 0.15, 0.15, 2, 2, 15, 0.45, 0.45, 0.45, 0.45, 6, 127.5, 0, 0], atol=1e-6)
  explained = []
  for operation, strength, signed in zip(policies._RANDAUGMENT, strengths, policies._SIGNED, strict=True):
    run = jax.jit(jax.vmap(operation, in_axes=(0, None)))
    same = [np.abs(run(IMAGES, sign * strength) - found).max(axis=(1, 2, 3)) < 1e-6 for sign in (1, -1)[: 1 + signed]]
    assert all(0.01 < one.mean() < 0.2 for one in same)
    explained.append(np.any(same, axis=0))
  assert np.any(explained, axis=0).all()


def test_randaugment_goes_on_with_each_operation_and_keeps_its_range():
  once, twice = (_over(policies.randaugment, num_ops=n, magnitude=30) for n in (1, 2))
  assert (once != twice).any(axis=(1, 2, 3)).mean() > 0.7
  assert twice.min() >= 0 and twice.max() <= 1
  assert policies._strengths(30, 331, 331)[3:5] == [150.0, 150.0]


def _windows(found, image):
  """(whether `found` is a window of `image` in a black image, by trying all; number of rows and columns cropped)."""
  height, width = image.shape[:2]
  rows = np.flatnonzero(found.any(axis=(1, 2)))
  columns = np.flatnonzero(found.any(axis=(0, 2)))
  part = found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  h, w = part.shape[:2]
  tried = ((i, j) for i in range(height - h + 1) for j in range(width - w + 1))
  return any((image[i : i + h, j : j + w] == part).all() for i, j in tried), height - h + width - w


def test_crop_shift_is_a_window_elsewhere():
  found = _over(policies.crop_shift, most=6)
  checked = [_windows(one, image) for one, image in zip(found, IMAGES, strict=True)]
  assert all(is_window for is_window, _ in checked)
  counts = np.bincount([total for _, total in checked], minlength=7)
  assert len(counts) == 7 and (abs(counts / 512 - 1 / 7) < 0.05).all()
  assert (found[:, 0] == 0).all(axis=(1, 2)).any() and (found[:, -1] == 0).all(axis=(1, 2)).any()


def _boxes(found):
  """Rows and columns of the black box in each image that was white; checks that there is at most one box."""
  black = found[..., 0] == 0
  rows, columns = black.any(axis=2), black.any(axis=1)
  np.testing.assert_array_equal(black, rows[:, :, None] & columns[:, None, :])
  for inside in (rows, columns):
    assert (np.abs(np.diff(np.pad(inside.astype(int), ((0, 0), (1, 1))), axis=1)).sum(axis=1) <= 2).all()
  return rows, columns


@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_random_erasing_takes_a_rectangle_of_its_area_and_ratio(probability):
  rows, columns = _boxes(_over(policies.random_erasing, WHITE, probability=probability, most=0.33))
  height, width = rows.sum(axis=1), columns.sum(axis=1)
  erased = height * width > 0
  assert abs(erased.mean() - probability) < 0.07
  area, ratio = (height * width / 192)[erased], (height / np.maximum(width, 1))[erased]
  assert area.min() < 0.05 and 0.28 < area.max() < 0.4 and (area > 0).all()
  assert ratio.min() < 0.5 and ratio.max() > 2
  assert height.max() < 16 and width.max() < 12


def test_cutout_is_a_square_around_any_pixel():
  found = np.asarray(data.augment(KEYS, WHITE, cutout=5, **OFF))
  rows, columns = _boxes(found)
  height, width = rows.sum(axis=1), columns.sum(axis=1)
  assert height.max() == width.max() == 5 and height.min() == width.min() == 3  # 2 before the middle, 2 after it
  whole = (height == 5) & (width == 5)
  assert 0.3 < whole.mean() < 0.65  # it is whole for 12 * 8 of 16 * 12 middles
  assert rows[:, 0].any() and rows[:, -1].any() and columns[:, 0].any() and columns[:, -1].any()


@pytest.mark.parametrize("version", policies.IDBH)
def test_idbh_shifts_changes_and_erases(version):
  found = _over(policies.idbh, version=version)
  space = policies.IDBH[version]
  assert found.min() >= 0 and found.max() <= 1 and (found != IMAGES).any(axis=(1, 2, 3)).mean() > 0.9
  np.testing.assert_allclose(sum(space.probabilities), 1.0, rtol=1e-6)
  assert len(space.probabilities) == len(policies._COLOUR_SHAPE)


@pytest.mark.slow
def test_idbhs_strengths_are_in_their_ranges():
  """Brightness is measured on images of one grey level; rotations are compared with those by all whole angles."""
  only = lambda number: policies.IDBH["svhn"]._replace(probabilities=tuple(float(i == number) for i in range(9)))
  grey = np.full((512, 9, 11, 3), 100 / 255, np.float32)
  run = lambda number, images: _over(policies._colour_shape, images, space=only(number))
  factors = run(1, grey).mean(axis=(1, 2, 3)) * 2.55
  assert 0.49 <= factors.min() < 0.53 and 1.87 < factors.max() <= 1.901
  for number in (0, 2, 3, 4, 5):  # colour, contrast, sharpness and so on change nothing in grey images
    np.testing.assert_allclose(run(number, grey), grey, atol=1e-6)
  turned = run(8, IMAGES)
  angles = [np.asarray(jax.jit(jax.vmap(image_ops.rotate, in_axes=(0, None)))(IMAGES, a)) for a in range(-30, 31) if a]
  assert np.any([(turned == image).all(axis=(1, 2, 3)) for image in angles], axis=0).all()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"randaugment": (2, 9)}, {"idbh": "cifar10_strong"}, {"cutout": 4}])
def test_an_image_is_augmented_by_its_own_key(options):
  run = jax.jit(functools.partial(data.augment, **OFF, **options))
  np.testing.assert_array_equal(run(KEYS[5:9], IMAGES[5:9]), run(KEYS[:16], IMAGES[:16])[5:9])


def test_other_augmentation_leaves_crops_and_flips_as_they_were():
  plain = np.asarray(data.augment(KEYS, WHITE * 0.5, crop_padding=2, flip=True))
  cut = np.asarray(data.augment(KEYS, WHITE * 0.5, crop_padding=2, flip=True, cutout=3))
  assert ((cut == plain) | (cut == 0)).all()
