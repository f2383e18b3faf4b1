"""Targeted attacks: what success means, closed forms on linear models, and invalid targets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from lrat_jax import attacks
from lrat_jax.attacks import losses, threat_model

PGD = functools.partial(attacks.pgd, epsilon=0.1, step_size=0.03, num_steps=8)
SUITE = {
  **{f"pgd_{loss}": functools.partial(PGD, loss=loss) for loss in ("ce", "cw", "margin", "dlr")},
  "restarts": functools.partial(PGD, num_restarts=2),
  "fgsm": functools.partial(attacks.fgsm, epsilon=0.1),
  "cw": functools.partial(attacks.cw, epsilon=0.1, step_size=0.03, num_steps=8),
  "apgd": functools.partial(attacks.apgd, epsilon=0.1, num_steps=8),
  "apgd_l1": functools.partial(attacks.apgd, epsilon=3.0, num_steps=10, norm="l1", loss="margin"),
  "fab": functools.partial(attacks.fab, epsilon=0.1, num_steps=8),
  "carlini_wagner": functools.partial(
    attacks.carlini_wagner, epsilon=0.8, binary_search_steps=2, num_steps=20, learning_rate=0.1, initial_const=1.0
  ),
  "square": functools.partial(attacks.square, epsilon=0.1, num_queries=60),
}


@pytest.fixture(scope="module")
def asked(cnn_logits, images):
  """(labels, targets): the model is right on most images; on every fourth it predicts the target from the start."""
  ranked = jnp.argsort(-cnn_logits(images), axis=1)
  reached = jnp.arange(16) % 4 == 3
  return jnp.where(reached, ranked[:, 1], ranked[:, 0]), jnp.where(reached, ranked[:, 0], ranked[:, 2])


@pytest.mark.parametrize("name", sorted(SUITE))
def test_success_is_that_the_target_is_reached(name, keys, images, cnn_logits, asked):
  attack, (labels, targets) = SUITE[name], asked
  result = jax.jit(lambda images: attack(keys, cnn_logits, images, labels, targets=targets))(images)
  found = cnn_logits(result.images).argmax(axis=1)
  np.testing.assert_array_equal(result.success, found == targets)
  norm = "l2" if name == "carlini_wagner" else attack.keywords.get("norm", "linf")
  assert threat_model.get_norm(norm).length(result.images - images).max() <= attack.keywords["epsilon"] + 1e-6
  reached = cnn_logits(images).argmax(axis=1) == targets
  assert result.success[~reached].any(), "no target is reached"
  assert (result.surviving_steps[reached] < result.surviving_steps.max()).any()  # it counts predictions of the label
  if attack.func in (attacks.fab, attacks.carlini_wagner, attacks.square):  # these stop if the target is predicted
    np.testing.assert_array_equal(result.images[reached], images[reached])


@pytest.mark.parametrize("loss", ["ce", "cw", "margin"])
def test_of_two_classes_the_other_is_the_target_of_every_attack(loss, keys, images, linear_logits):
  labels = jnp.arange(16) % 2
  run = functools.partial(PGD, keys, lambda x: linear_logits(x)[:, :2], images, labels, loss=loss)
  np.testing.assert_allclose(run(targets=1 - labels).images, run().images, atol=1e-6)


def test_targeted_losses_are_what_they_say():
  logits = np.array([[2.0, -1.0, 0.5, 0.0], [0.1, 0.2, 3.0, -2.0], [1.0, 4.0, 3.0, 2.0]], np.float32)
  labels, targets = np.array([0, 1, 2]), np.array([2, 3, 1])
  gaps = np.array([0.5 - 2.0, -2.0 - 3.0, 4.0 - 3.0])
  log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=1)[np.arange(3), targets]
  expected = {"ce": log_p, "margin": gaps, "cw": gaps - 50.0, "margin_targeted": [-1.5, -2.2, 1.0]}
  for name, values in expected.items():
    np.testing.assert_allclose(losses.targeted(name, labels, targets)(logits), values, rtol=1e-6)
  assert losses.targeted("cw", labels[:1], np.array([1]))(jnp.array([[0.0, 80.0]])) == 0.0  # capped at the confidence


def _distance(weights, point, target):
  """The L2 distance from a point to the region where the target has the largest logit, by a quadratic program."""
  others = np.delete(weights, target, axis=1) - weights[:, [target]]
  # Its dual: min |others @ duals|^2 / 2 - duals @ (others.T @ point), duals >= 0.
  gaps = others.T @ point
  objective = lambda duals: 0.5 * np.sum((others @ duals) ** 2) - duals @ gaps
  slope = lambda duals: others.T @ (others @ duals) - gaps
  bounds = [(0, None)] * len(gaps)
  duals = scipy.optimize.minimize(objective, 0 * gaps, jac=slope, bounds=bounds, method="L-BFGS-B", tol=1e-14).x
  return np.linalg.norm(others @ duals)


@pytest.mark.parametrize("name", ["fab", "carlini_wagner"])
def test_minimum_norm_attacks_come_near_the_targets_region(name, keys, linear_weights, linear_logits):
  images = jnp.full((16, 8, 8, 1), 0.5) + 0.01 * jax.random.normal(jax.random.key(4), (16, 8, 8, 1))
  weights = 0.1 * linear_weights
  logits_fn = lambda x: 0.1 * linear_logits(x)
  ranked = jnp.argsort(-logits_fn(images), axis=1)
  labels, targets = ranked[:, 0], ranked[:, -1]
  attack = {
    "fab": functools.partial(attacks.fab, norm="l2", num_steps=60, targets=targets),
    "carlini_wagner": functools.partial(
      attacks.carlini_wagner, num_steps=100, learning_rate=0.05, initial_const=1.0, targets=targets
    ),
  }[name]
  result = jax.jit(lambda images: attack(keys, logits_fn, images, labels))(images)
  points = np.asarray(images, np.float64).reshape(16, 64)
  least = np.array([_distance(weights.astype(np.float64), *pair) for pair in zip(points, targets, strict=True)])
  found = threat_model.get_norm("l2").length(result.images - images)
  assert result.success.all()
  assert (found >= 0.999 * least).all() and np.median(found / least) < 1.05


def test_restarts_keep_a_point_that_reaches_the_target(keys, images, linear_logits):
  ranked = jnp.argsort(-linear_logits(images), axis=1)
  labels, targets = ranked[:, 0], ranked[:, 1]
  # The ball is so large and the step so short that the starting point decides.
  run = functools.partial(attacks.pgd, keys, linear_logits, images, labels, epsilon=0.3, step_size=0.005, num_steps=1)
  once, often = (run(targets=targets, num_restarts=count).success for count in (1, 8))
  assert (often >= once).all() and often.sum() > once.sum()


def test_a_rank_is_a_direction_and_any_wrong_prediction_a_success(keys, images, cnn_logits):
  labels = cnn_logits(images).argmax(axis=1)
  for attack in (functools.partial(attacks.apgd, num_steps=8, loss="ce"), functools.partial(attacks.fab, num_steps=8)):
    result = attack(keys, cnn_logits, images, labels, epsilon=0.1, target_rank=3)
    np.testing.assert_array_equal(result.success, cnn_logits(result.images).argmax(axis=1) != labels)
    assert result.success.any()


TARGETED = {
  "pgd": functools.partial(PGD, num_steps=1),
  "fgsm": SUITE["fgsm"],
  "cw": functools.partial(SUITE["cw"], num_steps=1),
  "apgd": functools.partial(SUITE["apgd"], num_steps=1),
  "fab": functools.partial(SUITE["fab"], num_steps=1),
  "carlini_wagner": functools.partial(SUITE["carlini_wagner"], num_steps=1),
  "square": functools.partial(SUITE["square"], num_queries=1),
}


@pytest.mark.parametrize("name", sorted(TARGETED))
@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda targets, labels: targets.at[5].set(labels[5]), r"targets\[5\]=0 is the image's label; choose another"),
    (lambda targets, labels: targets.at[3].set(5), r"targets\[3\]=5 is not a class: .* returns 5 classes, 0 to 4"),
    (lambda targets, labels: targets.at[3].set(-1), r"targets\[3\]=-1 is not a class"),
    (lambda targets, labels: targets[:3], r"targets must be integers of shape \(16,\), one per image"),
    (lambda targets, labels: targets.astype(float), r"targets must be integers of shape \(16,\), one per image"),
    (lambda targets, labels: 2, r"targets must be integers of shape \(16,\), one per image, not int"),
  ],
)
def test_wrong_targets_are_one_line(name, change, message, keys, images, labels, linear_logits):
  with pytest.raises(ValueError, match=message):
    TARGETED[name](keys, linear_logits, images, labels, targets=change((labels + 1) % 5, labels))


def test_a_class_that_the_model_leaves_out_is_no_target(keys, images, labels, linear_logits):
  logits_fn = lambda x: linear_logits(x).at[6, 2].set(-jnp.inf)
  with pytest.raises(ValueError, match=r"targets\[6\]=2 is a class that the model leaves out: its logit is -inf"):
    PGD(keys, logits_fn, images, labels, targets=(labels + 1) % 5)


def test_the_loss_of_trades_takes_no_targets(keys, images, labels, linear_logits):
  with pytest.raises(ValueError, match=r"loss='kl' takes no targets; choose from \['ce', 'cw', 'dlr'"):
    PGD(keys, linear_logits, images, labels, targets=(labels + 1) % 5, loss="kl")
