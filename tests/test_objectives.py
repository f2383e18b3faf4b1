"""The loss on a pair, against a sum written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from lrat_jax import objectives


def _nll(logits, labels):
  return -scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)[np.arange(len(labels)), labels]


def test_weighted_cross_entropy_is_the_weighted_sum():
  labels = np.array([0, 2, 1])
  natural = jax.random.normal(jax.random.key(0), (3, 4))
  adversarial = jax.random.normal(jax.random.key(1), (3, 2, 4))
  natural_weights, adversarial_weights = np.array([0.3, 0.9, 0.0]), np.array([[0.5, 0.2], [0.1, 0.0], [0.4, 0.6]])
  losses = objectives.weighted_cross_entropy(natural, adversarial, labels, natural_weights, adversarial_weights)
  expected = natural_weights * _nll(natural, labels)
  for j in range(2):
    expected = expected + adversarial_weights[:, j] * _nll(adversarial[:, j], labels)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_no_natural_logits_are_natural_weights_of_zero():
  labels, adversarial = jnp.array([0, 1]), jax.random.normal(jax.random.key(1), (2, 1, 3))
  arguments = (adversarial, labels, jnp.zeros(2), jnp.ones((2, 1)))
  with_natural = objectives.weighted_cross_entropy(jnp.ones((2, 3)), *arguments)
  np.testing.assert_array_equal(objectives.weighted_cross_entropy(None, *arguments), with_natural)
