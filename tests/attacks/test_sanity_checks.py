"""The sanity checks: each warns about a model that is built to trigger it, and none warns about a healthy model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax.attacks import sanity_checks


@pytest.fixture(scope="module")
def right_labels(cnn_logits, images):
  return cnn_logits(images).argmax(axis=1)


def _lines(keys, logits_fn, images, labels, epsilon=0.02):
  return sanity_checks.warning_lines(
    sanity_checks.run_sanity_checks(keys, logits_fn, images, labels, epsilon=epsilon, num_steps=5)
  )


def test_a_healthy_model_raises_no_warning(keys, images, right_labels, cnn_logits):
  assert _lines(keys, cnn_logits, images, right_labels) == []


def test_probabilities_are_noticed(keys, images, right_labels, cnn_logits):
  lines = _lines(keys, lambda x: jax.nn.softmax(cnn_logits(x) / 10), images, right_labels)
  assert any("look like probabilities" in line for line in lines)


@pytest.mark.parametrize("mask", ["scale", "rounding"])
def test_masked_gradients_are_noticed(mask, keys, images, right_labels, cnn_logits):
  logits_fn = {"scale": lambda x: 1e4 * cnn_logits(x), "rounding": lambda x: cnn_logits(jnp.round(64 * x) / 64)}[mask]
  lines = _lines(keys, logits_fn, images, logits_fn(images).argmax(axis=1))
  assert any("of the gradients on surviving images are 0" in line for line in lines)


def test_gradients_are_watched_at_every_step(keys, images):
  # The gradient is 0 within 0.3 of the image, and so in the whole ball: every step must be counted.
  middle = jnp.full_like(images, 0.5)
  flat = lambda x: jnp.sum(jax.nn.relu(jnp.abs(x - 0.5) - 0.3), axis=(1, 2, 3))
  logits_fn = lambda x: jnp.stack([10 + flat(x), 0 * flat(x)], axis=1)
  seen = sanity_checks.watch_gradients(keys, logits_fn, middle, jnp.zeros(16, int), epsilon=0.1, num_steps=4)
  np.testing.assert_array_equal(seen.zero_steps, 4)
  np.testing.assert_array_equal(seen.broken_steps, 0)
  assert seen.survived.all() and not seen.misled.any()


def test_a_gradient_that_is_0_in_places_is_no_vanishing_gradient(keys, images):
  logits_fn = lambda x: jnp.stack([10 + x[:, 0, 0, 0], x[:, 1, 1, 0]], axis=1)
  zero_steps, *_ = sanity_checks.watch_gradients(keys, logits_fn, images, jnp.zeros(16, int), epsilon=0.1, num_steps=4)
  np.testing.assert_array_equal(zero_steps, 0)


@jax.custom_vjp
def _broken(x):
  """The identity, with a gradient that is NaN at the corner pixel if that pixel is above 0.5."""
  return x


_broken.defvjp(lambda x: (x, x), lambda x, gradient: (jnp.where((x > 0.5) & (_CORNER > 0), jnp.nan, gradient),))
_CORNER = jnp.zeros((8, 8, 1)).at[0, 0, 0].set(1)


def test_gradients_that_are_no_numbers_are_noticed(keys, images, right_labels, cnn_logits):
  images = images.at[:, 0, 0].set(jnp.where(jnp.arange(16) < 4, 0.9, 0.1)[:, None])
  lines = _lines(keys, lambda x: cnn_logits(_broken(x)), images, right_labels)
  assert any(line.startswith("25 % of the gradients are NaN or infinite in places") for line in lines)


@jax.custom_vjp
def _turned(x):
  """The identity, with a gradient whose signs are almost unrelated to those of the true gradient."""
  return x


_turned.defvjp(lambda x: (x, None), lambda _, gradient: (jnp.sin(1e4 * gradient),))


def test_gradients_that_lead_nowhere_are_noticed(keys, images, right_labels, cnn_logits):
  lines = _lines(keys, lambda x: cnn_logits(_turned(x)), images, right_labels)
  assert any("of the images a step along the gradient makes the model surer" in line for line in lines)


def test_chance_is_noticed(keys, images, right_labels, cnn_logits):
  draw = np.random.default_rng(0)
  restless = lambda x: cnn_logits(x) + 0.01 * draw.normal(size=(len(x), 5)).astype(np.float32)
  assert sanity_checks.prediction_difference(restless, images) > 1e-4
  frozen = lambda x: cnn_logits(x + 0.01 * jax.random.normal(jax.random.key(0), x.shape))
  assert sanity_checks.prediction_difference(frozen, images) > 1e-4
  assert any("two predictions" in line for line in _lines(keys, frozen, images, right_labels))


def test_answers_that_depend_on_the_batch_are_noticed(images, cnn_logits):
  assert sanity_checks.prediction_difference(cnn_logits, images) < 1e-5
  assert sanity_checks.prediction_difference(lambda x: cnn_logits(x - x.mean(axis=0)), images) > 1e-4


def test_images_out_of_range_are_noticed(keys, images, right_labels, linear_logits):
  lines = _lines(keys, linear_logits, 3 * images - 1, right_labels)
  assert sum("outside [0, 1]" in line for line in lines) == 2


def test_a_scale_that_helps_the_attack_is_noticed(keys):
  # Saturated: p_y is exactly 1, so cross-entropy has no gradient until the logits are made smaller.
  images, labels = jnp.full((16, 8, 8, 1), 0.5), jnp.zeros(16, int)
  logits_fn = lambda x: jnp.stack([200 + 0 * x[:, 0, 0, 0], 4000 * (x.mean(axis=(1, 2, 3)) - 0.5)], axis=1)
  findings = sanity_checks.run_sanity_checks(keys, logits_fn, images, labels, epsilon=0.1)
  assert findings.scaled[1.0] == 1.0 and findings.scaled[0.1] == 0.0
  assert any("x0.1 0.0 %, x1 100.0 %" in line for line in sanity_checks.warning_lines(findings))


@pytest.mark.parametrize(
  ("findings", "words"),
  [
    (sanity_checks.Findings(robust={"pgd": 0.55, "cw": 0.40, "apgd_t": 0.33}), "apgd_t leaves far less than pgd"),
    (sanity_checks.Findings(robust={"pgd": 0.55, "cw": 0.52, "apgd_t": 0.48}), None),
    (sanity_checks.Findings(scaled={0.1: 0.5, 1.0: 0.54, 10.0: 0.44, 100.0: 0.5}), "x10 44.0 %"),
    (sanity_checks.Findings(scaled={0.1: 0.53, 1.0: 0.54, 10.0: 0.54, 100.0: 0.6}), None),
    (sanity_checks.Findings(scaled={1.0: 0.9, 10.0: 0.8}, num_images=20), None),
    (sanity_checks.Findings(scaled={1.0: 0.9, 10.0: 0.7}, num_images=20), "x10 70.0 %"),
    (sanity_checks.Findings(square_gain=0.003), "Square broke 0.3 points"),
    (sanity_checks.Findings(square_gain=0.002), None),
    (sanity_checks.Findings(prediction_difference=float("nan")), "differ by nan"),
    (sanity_checks.Findings(), None),
  ],
)
def test_figures_become_lines_beyond_their_bounds(findings, words):
  lines = sanity_checks.warning_lines(findings)
  assert len(lines) == (words is not None)
  if words:
    assert words in lines[0] and "\n" not in lines[0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_probabilities_are_recognised_in_every_type(dtype):
  logits = 4.0 * jax.random.normal(jax.random.key(0), (64, 10))
  assert sanity_checks.looks_like_probabilities(jax.nn.softmax(logits).astype(dtype))
  assert not sanity_checks.looks_like_probabilities(jax.nn.sigmoid(logits).astype(dtype))
