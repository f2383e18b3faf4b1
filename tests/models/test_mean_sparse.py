"""MeanSparse: what it changes, what it leaves as it is, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from lrat_jax.models.mean_sparse import MeanSparse

VALUES = jnp.array([[0.0, 0.9, 1.1, -3.0], [2.0, 1.0, 3.2, 0.0]]).T  # two channels


def _apply(x, threshold):
  stats = {"mean": jnp.array([0.5, 2.0]), "var": jnp.array([1.0, 4.0]), "threshold": threshold}
  return MeanSparse().apply({"batch_stats": stats}, x)


def test_values_near_the_mean_of_their_channel_become_it():
  expected = np.array([[0.5, 0.5, 1.1, -3.0], [2.0, 2.0, 3.2, 0.0]]).T
  np.testing.assert_allclose(_apply(VALUES, 0.55), expected, atol=1e-6)


def test_without_a_threshold_nothing_changes():
  np.testing.assert_array_equal(_apply(VALUES, 0.0), VALUES)
  variables = MeanSparse().init(jax.random.key(0), VALUES)
  np.testing.assert_array_equal(MeanSparse().apply(variables, VALUES), VALUES)
  assert "params" not in variables


def test_the_gradient_is_0_where_values_became_the_mean():
  gradient = jax.grad(lambda x: jnp.sum(_apply(x, 0.55)))(VALUES)
  np.testing.assert_array_equal(gradient, np.array([[0, 0, 1, 1], [0, 0, 1, 1]]).T)
