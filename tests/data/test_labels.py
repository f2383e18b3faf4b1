"""Labels as distributions: one-hot, smoothed, and converted to classes if all are one-hot, and for evaluation."""

import jax.numpy as jnp
import numpy as np

from lrat_jax import data
from tests.helpers import make_split

HARD = jnp.array([1, 0, 3])
SOFT = np.array([[0.5, 0.5, 0, 0], [0, 0.2, 0.7, 0.1]], np.float32)


def test_integers_become_one_hot_and_distributions_stay():
  np.testing.assert_array_equal(data.as_distributions(HARD, 4), np.eye(4)[np.asarray(HARD)])
  np.testing.assert_array_equal(data.as_distributions(jnp.asarray(SOFT), 4), SOFT)


def test_smoothing_spreads_a_share_over_all_classes():
  expected = [[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.05, 0.85]]
  np.testing.assert_allclose(data.smooth(HARD, 0.2, 4), expected, rtol=1e-6)
  np.testing.assert_allclose(data.smooth(jnp.asarray(SOFT), 0.2, 4), 0.8 * SOFT + 0.05, rtol=1e-6)
  assert data.smooth(HARD, 0.0, 4) is HARD


def test_distributions_that_are_one_hot_train_as_the_classes_that_they_name():
  split = make_split(9)
  given = split._replace(labels=np.eye(4, dtype=np.float32)[split.labels])
  trained = data.for_training(given)
  assert trained.labels.dtype == np.int32
  np.testing.assert_array_equal(trained.labels, split.labels)
  assert data.for_training(split) is split
  given.labels[4] = [0.1, 0.9, 0, 0]
  assert data.for_training(given) is given
  twice = given._replace(labels=np.ones((9, 4), np.float32))
  assert data.for_training(twice) is twice


def test_what_is_evaluated_has_the_likeliest_class_and_of_equals_the_first():
  split = make_split(2)._replace(labels=SOFT)
  np.testing.assert_array_equal(data.for_evaluation(split).labels, [0, 2])
  assert data.for_evaluation(split).labels.dtype == np.int32
