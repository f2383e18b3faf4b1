"""MixUp and CutMix: how an image and its label are mixed, in which shares, and with which partner."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import data
from lrat_jax.core import sharding

KEYS = jax.random.split(jax.random.key(0), 256)
# A pixel shows which image it is from: the first one is all zeros, the other one all ones.
ZEROS, ONES = jnp.zeros((256, 12, 10, 2)), jnp.ones((256, 12, 10, 2))
FIRST, OTHER = jnp.tile(jnp.eye(3)[0], (256, 1)), jnp.tile(jnp.eye(3)[2], (256, 1))


@functools.partial(jax.jit, static_argnames=("mixup", "cutmix"))
def _mix(keys, images, labels, others, other_labels, *, mixup=0.0, cutmix=0.0):
  return data.mix(keys, images, labels, others, other_labels, mixup=mixup, cutmix=cutmix)


def _of_zeros_and_ones(**alphas):
  """Mixes zeros with ones: the mixed images, and the share of the other image in each label."""
  images, labels = _mix(KEYS, ZEROS, FIRST, ONES, OTHER, **alphas)
  np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)
  np.testing.assert_array_equal(labels[:, 1], 0)
  return np.asarray(images), np.asarray(labels[:, 2])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_is_a_mean_in_the_labels_shares_which_are_from_beta(alpha):
  images, shares = _of_zeros_and_ones(mixup=alpha)
  np.testing.assert_allclose(images, np.broadcast_to(shares[:, None, None, None], images.shape), atol=1e-6)
  # Beta(alpha, alpha) has mean 1/2 and variance 1 / (4 (2 alpha + 1)).
  np.testing.assert_allclose(shares.mean(), 0.5, atol=0.09)
  np.testing.assert_allclose(shares.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.2)


def test_cutmix_pastes_a_box_whose_share_of_pixels_is_its_labels():
  images, shares = _of_zeros_and_ones(cutmix=1.0)
  np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), shares, atol=1e-6)
  assert set(np.unique(images)) == {0, 1} and (images[..., 0] == images[..., 1]).all()
  pasted = images[..., 0].astype(bool)
  rows, columns = pasted.any(axis=2), pasted.any(axis=1)
  np.testing.assert_array_equal(pasted, rows[:, :, None] & columns[:, None, :])
  steps = lambda inside: np.abs(np.diff(np.pad(inside.astype(int), ((0, 0), (1, 1))), axis=1)).sum(axis=1)
  assert (steps(rows) <= 2).all() and (steps(columns) <= 2).all()
  # Boxes have the image's aspect ratio unless an edge clips them; there are boxes of all sizes, and at every edge.
  assert rows[:, 0].any() and rows[:, -1].any() and columns[:, 0].any() and columns[:, -1].any()
  inside = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1]) & rows.any(axis=1) & columns.any(axis=1)
  assert (np.abs(rows[inside].sum(axis=1) / 12 - columns[inside].sum(axis=1) / 10) <= 0.2).all()
  assert (rows[inside].sum(axis=1) % 2 == 0).all() and (columns[inside].sum(axis=1) % 2 == 0).all()  # even: 2 * half
  assert shares.min() < 0.05 and shares.max() > 0.6


def test_with_both_each_image_has_either():
  images, shares = _of_zeros_and_ones(mixup=1.0, cutmix=1.0)
  np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), shares, atol=1e-6)  # the share of the drawn method
  cut = ((images == 0) | (images == 1)).all(axis=(1, 2, 3))
  assert 64 < cut.sum() < 192


def test_off_means_untouched():
  images, labels = data.mix(KEYS, ZEROS, FIRST, ONES, OTHER, mixup=0.0, cutmix=0.0)
  assert images is ZEROS and labels is FIRST


@pytest.mark.parametrize("alphas", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
def test_an_image_is_mixed_by_its_own_key(alphas):
  images = jax.random.uniform(jax.random.key(1), ZEROS.shape)
  whole = _mix(KEYS, images, FIRST, images[::-1], OTHER, **alphas)
  part = _mix(KEYS[5:9], images[5:9], FIRST[:4], images[::-1][5:9], OTHER[:4], **alphas)
  np.testing.assert_array_equal(part[0], whole[0][5:9])
  np.testing.assert_array_equal(part[1], whole[1][5:9])


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_the_partner_is_the_next_of_the_global_batch_on_any_number_of_devices(num_devices):
  rows = {"images": np.arange(24.0).reshape(8, 3), "labels": np.arange(8)}
  mesh = sharding.make_mesh(num_devices)
  next_rows = functools.partial(data.next_rows, axis_name=sharding.AXIS)
  shifted = jax.jit(sharding.shard_map(next_rows, mesh, sharding.BATCHED, sharding.BATCHED))(rows)
  jax.tree.map(lambda found, given: np.testing.assert_array_equal(found, np.roll(given, -1, axis=0)), shifted, rows)
