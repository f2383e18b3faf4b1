"""Swin: windows, the mask after a shift, offsets inside a window, and names of networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import models
from lrat_jax.models import swin


def test_windows_are_cut_and_put_together():
  image = np.arange(4 * 6).reshape(1, 4, 6, 1)
  windows = swin.to_windows(image, (2, 3))
  assert windows.shape == (4, 6, 1)
  np.testing.assert_array_equal(windows[1].ravel(), [3, 4, 5, 9, 10, 11])
  np.testing.assert_array_equal(swin.from_windows(windows, image.shape, (2, 3)), image)


def test_distances_are_counted_by_row_and_column():
  index = swin.relative_positions(2, 3)  # places in rows of 3; a table of 3 x 5 offsets
  assert index[0, 0] == index[5, 5] == 1 * 5 + 2  # no offset
  assert index[5, 0] == 2 * 5 + 4 and index[0, 5] == 0  # the largest offset, in both directions
  assert index[1, 0] == 1 * 5 + 3 and index[3, 0] == 2 * 5 + 2  # one to the right, one down


def test_after_a_shift_only_neighbours_see_each_other():
  """Two places of a window see each other only if their distance in the image is less than the window's width."""
  size, window, shift = (8, 12), (4, 4), (2, 2)
  rows, columns = np.mgrid[: size[0], : size[1]]
  places = np.stack([rows, columns], axis=-1)[None]
  windows = swin.to_windows(np.roll(places, (-2, -2), (1, 2)), window)
  apart = np.abs(windows[:, :, None] - windows[:, None, :]).max(axis=-1) >= 4
  np.testing.assert_array_equal(swin.shift_mask(size, window, shift), np.where(apart, -100, 0))
  assert apart.any() and not swin.shift_mask(size, window, (0, 0)).any()


@pytest.mark.parametrize("size", swin.SIZES)
def test_names_spell_what_they_are_read_as(size):
  for window, epsilon in ((7, 1e-5), (14, 1e-6)):
    name = f"swin_{size}_window{window}" + ("_eps1e-6" if epsilon == 1e-6 else "")
    network = models.create(name, 10).network
    assert ((network.depths, network.width), network.epsilon) == (swin.SIZES[size], epsilon)
    assert swin.name_of(network.depths, network.width, network.patch, window, epsilon) == name
  network = models.create("swin_2-1-3_64_patch2_window4", 10).network
  assert network == swin.Swin(10, (2, 1, 3), 64, 2, 4)
  assert swin.name_of((2, 1, 3), 64, 2, 4) == "swin_2-1-3_64_patch2_window4"


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("swin_2-2_48_patch2_window4", "WIDTH of swin_DEPTHS_WIDTH_... must be a multiple of 32"),
    ("swin_base", "is not a model; choose from"),
    ("swin_base_window7_eps1e-7", "is not a model; choose from"),
  ],
)
def test_names_of_no_network_are_refused(name, message):
  with pytest.raises(ValueError, match=message):
    models.create(name, 10)


@pytest.mark.parametrize(
  ("size", "message"),
  [
    (15, "images of 15x15 cannot be divided into patches of 2x2"),
    (12, "6x6 patches cannot be divided into windows of 4x4"),
    (6, "3x3 patches cannot be merged two by two"),
  ],
)
def test_images_that_do_not_fit_are_refused(size, message):
  model = models.create("swin_1-1_32_patch2_window4", 10)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "count"),
  # Counts of timm, and of MIMIR, whose larger windows have larger tables.
  [
    ("swin_base_window7", 87_768_224),
    ("swin_large_window7", 196_532_476),
    ("swin_large_window14_eps1e-6", 196_794_556),
  ],
)
def test_parameter_counts_are_the_published_ones(name, count):
  model = models.create(name, 1000)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
