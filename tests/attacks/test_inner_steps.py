"""What attacks do inside a step and results alone do not show: EAD's momentum, HopSkipJump's jump, SPSA's draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import attacks
from lrat_jax.attacks import _hop_skip_jump, _spsa


def _fista(image, normal, gap, *, constant, beta, learning_rate, num_steps):
  """The adversarial iterates of EAD's Algorithm 1, in NumPy, for a linear margin normal . (x - image) - gap."""
  point = momentum = image
  found = []
  for k in range(num_steps):
    loss_is_on = normal @ (momentum - image) - gap < 0
    gradient = 2 * (momentum - image) - constant * loss_is_on * normal
    stepped = momentum - learning_rate * np.sqrt(1 - k / num_steps) * gradient - image
    ahead = image + np.sign(stepped) * np.maximum(np.abs(stepped) - beta, 0)
    momentum = ahead + k / (k + 3) * (ahead - point)
    point = ahead
    if normal @ (point - image) > gap:
      found.append(point)
  return found


def test_ead_takes_fistas_steps_with_momentum(keys):
  normal = np.random.default_rng(0).normal(size=16)
  image, gap = np.full(16, 0.5), 0.6
  options = {"constant": 1.0, "beta": 0.01, "learning_rate": 0.05, "num_steps": 12}
  found = _fista(image, normal, gap, **options)
  expected = min(found, key=lambda point: np.abs(point - image).sum())
  assert len(found) > 2 and np.abs(expected - 0.5).max() < 0.5  # nothing is clipped to [0, 1]

  def logits_fn(x):
    margin = (x.reshape(len(x), -1) - 0.5) @ jnp.asarray(normal, jnp.float32) - gap
    return jnp.stack([0 * margin, margin], axis=1)

  options["initial_const"] = options.pop("constant")
  images = jnp.asarray(image, jnp.float32).reshape(1, 4, 4, 1)
  run = functools.partial(attacks.ead, decision_rule="l1", binary_search_steps=1, **options)
  result = run(keys[:1], logits_fn, images, jnp.zeros(1, int))
  np.testing.assert_allclose(result.images.ravel(), expected, atol=1e-5)


@pytest.mark.parametrize(
  ("length", "end", "withstood"), [(0.1, 0.55, 0), (0.4, 0.55, 2), (0.2, 0.55, 1), (1.6, 0.55, 4)]
)
def test_a_jump_is_halved_until_it_ends_where_the_model_is_wrong(length, end, withstood):
  points = jnp.full((2, 1, 1, 1), 0.45)
  ask = lambda points: (points[:, 0, 0, 0] > 0.4) & (points[:, 0, 0, 0] < 0.6)
  state = _hop_skip_jump._State(points, jnp.array([True, False]), jnp.zeros(2, jnp.int32))
  moved = _hop_skip_jump._jump(ask, state, jnp.ones_like(points), jnp.full(2, length))
  np.testing.assert_allclose(moved.points.ravel(), [end, 0.45], atol=1e-6)  # a point without a start stays
  np.testing.assert_array_equal(moved.survived, [withstood, 0])


def test_spsas_estimate_is_the_gradient_on_average():
  slope = np.random.default_rng(0).normal(size=(1, 4, 4, 1)).astype(np.float32)
  loss = lambda points: jnp.sum(slope * points, axis=(1, 2, 3))
  points = jnp.full((1, 4, 4, 1), 0.5).at[0, 0].set(0.0).at[0, 1].set(1.0)  # there, pairs are clipped to [0, 1]
  estimate = _spsa._estimate(loss, jax.random.split(jax.random.key(0), 1), points, 0.01, 4000)
  np.testing.assert_allclose(estimate[0, 2:], slope[0, 2:], atol=0.3)
  np.testing.assert_allclose(estimate[0, :2], slope[0, :2], atol=0.6)


def test_spsa_asks_about_images_alone(keys, images):
  weights = jnp.asarray(np.random.default_rng(1).normal(size=(64, 2)), jnp.float32)
  corners = jnp.round(images)  # where a pair would leave [0, 1]

  def logits_fn(x):
    inside = ((x >= 0) & (x <= 1)).all(axis=(1, 2, 3))
    return jnp.where(inside[:, None], x.reshape(len(x), -1) @ weights, jnp.nan)

  labels = logits_fn(corners).argmax(axis=1)
  result = attacks.spsa(keys, logits_fn, corners, labels, epsilon=0.3, num_steps=10, num_samples=16, learning_rate=0.1)
  assert result.success.mean() > 0.5


def test_spsa_draws_anew_at_every_step(keys, images):
  logits_fn = lambda x: jnp.stack(
    [10 + 0 * x.sum(axis=(1, 2, 3)), x.reshape(len(x), -1) @ jnp.cos(jnp.arange(64.0))], axis=1
  )
  middle, labels = 0.4 + 0.2 * images, jnp.zeros(16, int)
  options = {"epsilon": 0.3, "num_samples": 1, "learning_rate": 0.01}
  one, two = (
    jnp.abs(attacks.spsa(keys, logits_fn, middle, labels, num_steps=steps, **options).images - middle)
    for steps in (1, 2)
  )
  # With one pair, all components of an estimate have the same size. With two, some add up and some nearly cancel.
  np.testing.assert_allclose(one, 0.01, rtol=1e-2)
  assert jnp.mean(two.max(axis=(1, 2, 3)) - two.min(axis=(1, 2, 3))) > 0.002
