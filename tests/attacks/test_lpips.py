"""LPIPS with a network's own activations, and the attack within its balls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from lrat_jax import attacks, models


@pytest.fixture(scope="module")
def logits_fn():
  """A small network with random weights, 5 classes."""
  model = models.create("cnn_4", 5)
  return Partial(models.applied(model), model.init(jax.random.key(3), jnp.zeros((1, 8, 8, 1))))


@pytest.fixture(scope="module")
def features_fn(logits_fn):
  return models.features_of(logits_fn)


@pytest.fixture(scope="module")
def predictions(logits_fn, images):
  return logits_fn(images).argmax(axis=1)


@pytest.fixture(scope="module")
def attack(logits_fn, features_fn):
  """An attack, compiled: (keys, images, labels, epsilon) -> AttackResult."""
  fixed = functools.partial(attacks.lpips, features_fn=features_fn, num_steps=10)
  return jax.jit(lambda keys, images, labels, epsilon: fixed(keys, logits_fn, images, labels, epsilon=epsilon))


def _reference(layers, others):
  """LPIPS in NumPy, one position at a time, for activations [batch, h, w, c]."""
  total = np.zeros(len(layers[0]))
  for layer, other in zip(layers, others, strict=True):
    batch, height, width, _ = layer.shape
    for image in range(batch):
      for row in range(height):
        for column in range(width):
          u, v = (np.asarray(x, np.float64)[image, row, column] for x in (layer, other))
          u, v = (x / (np.linalg.norm(x) + 1e-10) for x in (u, v))
          total[image] += np.sum((u - v) ** 2) / (height * width)
  return np.sqrt(total)


def test_distances_are_those_of_the_definition(features_fn, images):
  others = jnp.clip(images + 0.3 * jax.random.normal(jax.random.key(0), images.shape), 0, 1)
  expected = _reference(features_fn(images), features_fn(others))
  np.testing.assert_allclose(attacks.lpips_distance(features_fn, images, others), expected, rtol=1e-5)
  assert expected.min() > 0.1
  assert (attacks.lpips_distance(features_fn, images, images) == 0).all()


def test_places_without_activation_count_nothing():
  one = lambda images: [jnp.where(images > 0.5, images, 0.0)]
  black, white = jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1)).at[0, 0, 0, 0].set(1.0)
  np.testing.assert_allclose(attacks.lpips_distance(one, black, white), [0.5])
  np.testing.assert_allclose(attacks.lpips_distance(one, white, 0.8 * white), [0.0], atol=1e-6)  # nor does length


@pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.2])
def test_results_are_in_the_ball_and_in_range(attack, features_fn, keys, images, predictions, epsilon):
  found = attack(keys, images, predictions, epsilon).images
  assert (attacks.lpips_distance(features_fn, images, found) <= epsilon * (1 + 1e-5)).all()
  assert found.min() >= 0 and found.max() <= 1


def test_points_beyond_the_ball_come_back_to_its_edge(attack, features_fn, keys, images, predictions):
  result = attack(keys, images, predictions, 0.02)
  distances = attacks.lpips_distance(features_fn, images, result.images)[~result.success]
  assert len(distances) > 4 and jnp.median(distances) > 0.0199 and (distances > 0.018).all()


def test_strength_0_returns_the_images(attack, keys, images, predictions):
  result = attack(keys, images, predictions, 0.0)
  np.testing.assert_array_equal(result.images, images)
  assert not result.success.any()


def test_more_fall_than_by_chance(attack, logits_fn, features_fn, keys, images, predictions):
  epsilon, shares = 0.15, np.linspace(0, 0.5, 20)[:, None, None, None, None]
  fooled = []
  for noise in jax.random.normal(jax.random.key(7), (4, *images.shape)):  # as much of it is added as the ball allows
    inside = [attacks.lpips_distance(features_fn, images, images + share * noise) <= epsilon for share in shares]
    moved = images + shares[np.sum(inside, axis=0) - 1, 0] * noise
    fooled.append(logits_fn(moved).argmax(axis=1) != predictions)
  success = attack(keys, images, predictions, epsilon).success
  assert success.mean() > np.mean(fooled) + 0.3


def test_targets_are_reached(logits_fn, features_fn, keys, images, predictions):
  targets = (predictions + 1) % 5
  options = {"epsilon": 1.0, "features_fn": features_fn, "num_steps": 10, "targets": targets}
  result = jax.jit(lambda: attacks.lpips(keys, logits_fn, images, predictions, **options))()
  np.testing.assert_array_equal(result.success, logits_fn(result.images).argmax(axis=1) == targets)
  assert result.success.mean() > 0.5


def test_activations_that_are_all_0_break_no_gradient(keys, images, linear_logits):
  features_fn = lambda images: [jnp.maximum(images - 0.5, 0.0)]
  labels = linear_logits(images).argmax(axis=1)
  result = attacks.lpips(keys, linear_logits, images, labels, epsilon=0.3, features_fn=features_fn, num_steps=5)
  assert (result.broken_gradients == 0).all() and jnp.isfinite(result.images).all()


@pytest.mark.parametrize(
  ("features_fn", "message"),
  [
    (None, "features_fn=None: lpips needs a function that returns a model's activations"),
    (lambda images: images, "features_fn returns ArrayImpl; it must return a list of at least one array"),
    (lambda images: [], "features_fn returns list; it must return a list of at least one array"),
    (lambda images: [images[0]], r"a list of float32 \(8, 8, 1\); it must be a list of float arrays \[16, h, w, c\]"),
    (lambda images: [images.mean()], r"a list of float32 \(\); it must be"),
    (lambda images: [3], "a list of int; it must be"),
  ],
)
def test_what_are_no_features_is_named(features_fn, message, keys, images, labels, linear_logits):
  with pytest.raises(ValueError, match=message):
    attacks.lpips(keys, linear_logits, images, labels, epsilon=0.1, features_fn=features_fn)
