"""The minimum-norm L2 attack: within about 2 % of the closed form; perturbations longer than epsilon do not count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import attacks


@pytest.fixture(scope="module")
def problem(linear_weights):
  """A two-class linear model and images at six distances to its boundary: (logits_fn, images, labels, distances)."""
  weights = jnp.asarray(linear_weights[:, :2])
  normal = weights[:, 0] - weights[:, 1]
  logits_fn = lambda x: (x.reshape(x.shape[0], -1) - 0.5) @ weights
  gaps = jnp.linspace(-0.9, 0.8, 6) * jnp.linalg.norm(normal)
  images = (0.5 + gaps[:, None] * normal / jnp.sum(normal**2)).reshape(6, 8, 8, 1)
  labels = logits_fn(images).argmax(axis=1)
  return logits_fn, images, labels, np.abs(np.linspace(-0.9, 0.8, 6))


@pytest.fixture(scope="module")
def attack(problem):
  logits_fn, images, labels, _ = problem
  keys = jax.random.split(jax.random.key(0), 6)
  options = {"binary_search_steps": 7, "num_steps": 150, "learning_rate": 0.02, "initial_const": 0.1}

  @jax.jit
  def run(epsilon):
    return attacks.carlini_wagner(keys, logits_fn, images, labels, epsilon=epsilon, **options)

  return run


def _lengths(result, images):
  return np.sqrt(((np.asarray(result.images) - images) ** 2).sum(axis=(1, 2, 3)))


def test_perturbations_are_the_closed_forms(attack, problem):
  logits_fn, images, labels, distances = problem
  result = attack(jnp.inf)
  assert (logits_fn(result.images).argmax(axis=1) != labels).all()
  lengths = _lengths(result, images)
  assert (lengths >= distances - 1e-5).all() and (lengths <= 1.02 * distances + 0.005).all()
  assert ((result.surviving_steps > 0) & (result.surviving_steps < 7 * 150)).all()


def test_the_search_leaves_a_const_that_is_far_too_large(problem):
  logits_fn, images, labels, distances = problem
  options = {"binary_search_steps": 12, "num_steps": 60, "learning_rate": 0.02, "initial_const": 1e3}
  run = jax.jit(lambda: attacks.carlini_wagner(jax.random.key(0), logits_fn, images, labels, **options))
  assert (_lengths(run(), images) <= 1.05 * distances + 0.01).all()


def test_longer_perturbations_than_epsilon_do_not_count(attack, problem):
  logits_fn, images, labels, distances = problem
  result = attack(0.6)
  fooled = np.asarray(logits_fn(result.images).argmax(axis=1) != labels)
  np.testing.assert_array_equal(fooled, distances < 0.6)
  np.testing.assert_array_equal(result.images[~fooled], images[~fooled])


def test_confidence_asks_for_a_margin(problem, keys):
  logits_fn, images, labels, _ = problem
  run = functools.partial(attacks.carlini_wagner, keys[:6], logits_fn, images, labels, num_steps=100)
  result = run(confidence=1.0, binary_search_steps=3, learning_rate=0.05, initial_const=0.3)
  logits = logits_fn(result.images)
  rows = jnp.arange(6)
  assert (logits[rows, 1 - labels] - logits[rows, labels] >= 1.0 - 1e-5).all()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"norm": "linf"}, r"norm='linf' is unknown; choose from \['l2'\]"),
    ({"epsilon": -1.0}, r"epsilon=-1 is outside \[0, 8\]"),
    ({"learning_rate": 0.0}, r"learning_rate=0 is outside \(0, 1e6\]"),
    ({"initial_const": -1.0}, "initial_const=-1 is outside"),
    ({"confidence": -1.0}, r"confidence=-1 is outside \[0, 1e6\]"),
    ({"confidence": float("inf")}, "confidence=inf is not a number"),
    ({"learning_rate": float("nan")}, "learning_rate=nan is not a number"),
    ({"binary_search_steps": 0}, "binary_search_steps=0 must be an integer from 1"),
  ],
)
def test_bad_arguments_are_named(change, message, keys, images, labels, linear_logits):
  with pytest.raises(ValueError, match=message):
    attacks.carlini_wagner(keys, linear_logits, images, labels, **change)
