"""Batches: each image at most once per epoch, orders that depend only on seed and epoch, iterators that resume."""

import numpy as np

from lrat_jax import data
from tests.helpers import make_split

SPLIT = make_split(50)


def _indices(iterator, batches):
  return np.stack([next(iterator)["indices"] for _ in range(batches)])


def test_an_epoch_shows_no_image_twice_and_the_next_has_another_order():
  epochs = _indices(data.train_batches(SPLIT, 10, seed=0), 15).reshape(3, 50)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(50))
  assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()


def test_a_remainder_is_left_out_of_its_epoch():
  assert data.steps_per_epoch(SPLIT, 16) == 3
  epochs = _indices(data.train_batches(SPLIT, 16, seed=0), 6).reshape(2, 48)
  assert all(len(set(epoch)) == 48 for epoch in epochs)
  assert set(epochs[0]) != set(epochs[1])


def test_images_and_labels_go_with_their_index():
  batch = next(data.train_batches(SPLIT, 10, seed=3))
  np.testing.assert_array_equal(batch["images"], SPLIT.images[batch["indices"]])
  np.testing.assert_array_equal(batch["labels"], SPLIT.labels[batch["indices"]])


def test_seeds_share_no_epochs_order():
  runs = [_indices(data.train_batches(SPLIT, 50, seed), 3) for seed in (0, 1, 2)]
  orders = {tuple(order) for run in runs for order in run}
  assert len(orders) == 9
  np.testing.assert_array_equal(runs[1], _indices(data.train_batches(SPLIT, 50, 1), 3))


def test_a_restored_iterator_goes_on_with_the_very_next_batch():
  iterator = data.train_batches(SPLIT, 10, seed=0)
  _indices(iterator, 7)
  state = iterator.get_state()
  expected = _indices(iterator, 6)
  fresh = data.train_batches(SPLIT, 10, seed=0)
  fresh.set_state(state)
  np.testing.assert_array_equal(_indices(fresh, 6), expected)


def test_evaluation_counts_every_image_once_whatever_the_batch_size():
  for batch_size in (1, 16, 50, 64):
    batches = list(data.eval_batches(SPLIT, batch_size))
    assert all(batch["images"].shape == (batch_size, 8, 8, 1) for batch in batches)
    seen = np.concatenate([batch["indices"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(50))
