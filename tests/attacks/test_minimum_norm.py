"""Minimum-norm attacks: closed forms on linear models, perturbations that do not count, targets, and the curve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import attacks
from lrat_jax.attacks import threat_model

# (attack, by which share its distance may exceed the closed form)
SUITE = {
  "ddn": (functools.partial(attacks.ddn, num_steps=60, init_norm=0.1), 0.02),
  "fmn_l1": (functools.partial(attacks.fmn, norm="l1", num_steps=60), 0.02),
  "fmn_l2": (functools.partial(attacks.fmn, norm="l2", num_steps=60), 0.02),
  "fmn_linf": (functools.partial(attacks.fmn, norm="linf", num_steps=60), 0.02),
  "deepfool": (functools.partial(attacks.deepfool, num_steps=5), 0.03),
  "deepfool_linf": (functools.partial(attacks.deepfool, norm="linf", num_steps=5), 0.03),
  "ead_l1": (
    functools.partial(
      attacks.ead, decision_rule="l1", binary_search_steps=9, num_steps=200, initial_const=0.1, beta=0.1
    ),
    0.03,
  ),
  "fab_l1": (functools.partial(attacks.fab, norm="l1", num_steps=10), 0.06),
  "hop_skip_jump": (functools.partial(attacks.hop_skip_jump, num_steps=12, initial_num_evals=60), 0.15),
  "hop_skip_jump_linf": (
    functools.partial(attacks.hop_skip_jump, norm="linf", num_steps=12, initial_num_evals=60),
    0.6,
  ),
}
DUAL_ORDERS = {"linf": 1, "l2": 2, "l1": np.inf}


def _norm(name):
  return {"l1": "l1", "linf": "linf"}.get(name.split("_")[-1], "l2")


@pytest.fixture(scope="module")
def problem(linear_weights):
  """A linear model of two classes, and grey images near its boundary: (logits_fn, images, labels, gaps, normal).

  The label is class 0, so the model is wrong on the last two images. The boundary is so near that [0, 1] clips nothing.
  """
  weights = jnp.asarray(linear_weights[:, :2])
  normal = weights[:, 0] - weights[:, 1]
  logits_fn = lambda x: (x.reshape(x.shape[0], -1) - 0.5) @ weights
  gaps = jnp.array([0.1, 0.08, 0.06, 0.04, -0.02, -0.1]) * jnp.linalg.norm(normal)
  images = (0.5 + gaps[:, None] * normal / jnp.sum(normal**2)).reshape(6, 8, 8, 1)
  return logits_fn, images, jnp.zeros(6, int), np.asarray(gaps), np.asarray(normal)


@pytest.mark.parametrize("name", SUITE)
def test_distances_on_a_linear_model_are_the_closed_forms(name, problem, keys):
  (attack, excess), (logits_fn, images, labels, gaps, normal) = SUITE[name], problem
  result = jax.jit(lambda keys, images: attack(keys, logits_fn, images, labels))(keys[:6], images)
  exact = np.maximum(gaps, 0) / np.linalg.norm(normal, ord=DUAL_ORDERS[_norm(name)])
  assert result.success.all() and (logits_fn(result.images).argmax(axis=1) == 1).all()
  distances = np.asarray(result.distances)
  np.testing.assert_array_equal(distances[4:], 0)
  assert (distances[:4] >= exact[:4] - 1e-5).all()
  assert (distances[:4] <= (1 + excess) * exact[:4] + 2e-4).all(), distances[:4] / exact[:4]
  np.testing.assert_array_equal(result.images[4:], images[4:])


def _fewest(gap, normal, image):
  """The smallest number of components that reach the boundary, if those that gain most are used first."""
  room = np.where(normal < 0, 1 - image.ravel(), image.ravel())
  return 1 + np.sum(np.cumsum(np.sort(np.abs(normal) * room)[::-1]) <= gap)


def test_the_fewest_components(problem, keys):
  logits_fn, images, labels, gaps, normal = problem
  shift = jnp.array([10.0, 6.0, 2.5, 0.0]).reshape(4, 1)  # further away: one component is enough only for the last
  far = images[:4] + (shift * normal / np.sum(normal**2)).reshape(4, 8, 8, 1)
  assert far.min() >= 0 and far.max() <= 1
  result = jax.jit(lambda x: attacks.fmn(keys[:4], logits_fn, x, labels[:4], norm="l0", num_steps=60))(far)
  fewest = [_fewest(gap, normal, image) for gap, image in zip(gaps[:4] + shift[:, 0], far, strict=True)]
  assert result.success.all() and max(fewest) > 2 and fewest[3] == 1
  assert (result.distances >= np.array(fewest)).all() and (result.distances <= np.array(fewest) + 1).all()
  assert result.distances[3] == 1
  np.testing.assert_array_equal((result.images != far).sum(axis=(1, 2, 3)), result.distances)


def test_ddn_comes_back_from_a_radius_beyond_all_images(problem, keys):
  """The radius is clipped to the longest perturbation, 4 for grey images of 64 components, and shrinks from there."""
  logits_fn, images, labels, _, _ = problem
  result = jax.jit(lambda x: attacks.ddn(keys[:4], logits_fn, x, labels[:4], num_steps=60, init_norm=1e6))(images[:4])
  assert (result.distances < 1.1 * 4.0 * 0.95**59).all()


def test_fmn_shrinks_from_the_nearest_found_not_from_its_radius(problem, keys):
  """The model is a cube root, whose linearisation puts the boundary three times too far away."""
  logits_fn, images, labels, gaps, normal = problem
  roots = lambda x: jnp.cbrt(logits_fn(x) @ jnp.array([1.0, -1.0]))[:, None] * jnp.array([1.0, 0.0])
  exact = gaps[0] / np.linalg.norm(normal)
  options = {"norm": "l2", "num_steps": 10, "alpha_init": float(1.2 * exact)}
  result = jax.jit(lambda x: attacks.fmn(keys[:1], roots, x, labels[:1], **options))(images[:1])
  assert exact <= result.distances[0] * (1 + 1e-5) and result.distances[0] < 1.05 * exact


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_goes_past_the_boundary_by_the_overshoot(norm, problem, keys):
  logits_fn, images, labels, gaps, normal = problem
  exact = gaps[:4] / np.linalg.norm(normal, ord=DUAL_ORDERS[norm])
  run = lambda overshoot: attacks.deepfool(keys[:4], logits_fn, images[:4], labels[:4], norm=norm, overshoot=overshoot)
  for overshoot in (0.0, 0.5):
    result = jax.jit(lambda overshoot=overshoot: run(overshoot))()
    # Each step goes 1e-4 beyond the boundary, as in the original.
    np.testing.assert_allclose(result.distances, (1 + overshoot) * (exact + 1e-4), rtol=1e-3)


def test_ead_keeps_what_its_decision_rule_says(problem, keys):
  logits_fn, images, labels, _, _ = problem
  beta, options = 0.1, {"binary_search_steps": 4, "num_steps": 50, "initial_const": 0.1}

  def measured(rule):
    run = lambda x: attacks.ead(keys[:4], logits_fn, x, labels[:4], decision_rule=rule, beta=beta, **options)
    result = jax.jit(run)(images[:4])
    np.testing.assert_allclose(result.distances, jnp.abs(result.images - images[:4]).sum(axis=(1, 2, 3)), rtol=1e-4)
    return result.distances, jnp.square(result.images - images[:4]).sum(axis=(1, 2, 3)) + beta * result.distances

  (elastic_l1, elastic_en), (l1, l1_en) = measured("en"), measured("l1")
  assert (l1 <= elastic_l1 + 1e-5).all() and (elastic_en <= l1_en + 1e-5).all()
  assert (l1 < 0.999 * elastic_l1).any() and (elastic_en < 0.999 * l1_en).any()


def test_ead_fools_the_model_by_the_confidence(problem, keys):
  logits_fn, images, labels, _, _ = problem
  options = {"binary_search_steps": 4, "num_steps": 50, "initial_const": 1.0, "confidence": 1.0}
  result = jax.jit(lambda x: attacks.ead(keys[:4], logits_fn, x, labels[:4], **options))(images[:4])
  margins = logits_fn(result.images) @ jnp.array([-1.0, 1.0])
  assert result.success.all() and (margins >= 1.0 - 1e-4).all()


@pytest.mark.parametrize("name", ["ddn", "fmn_linf", "deepfool", "ead_l1"])
def test_longer_perturbations_than_epsilon_do_not_count(name, problem, keys):
  (attack, _), (logits_fn, images, labels, gaps, normal) = SUITE[name], problem
  exact = np.maximum(gaps, 0) / np.linalg.norm(normal, ord=DUAL_ORDERS[_norm(name)])
  run = jax.jit(lambda epsilon: attack(keys[:6], logits_fn, images, labels, epsilon=epsilon))
  result = run(0.5 * (exact[1] + exact[2]))
  counts = np.array([False, False, True, True, True, True])
  np.testing.assert_array_equal(result.success, counts)
  np.testing.assert_array_equal(np.isfinite(result.distances), counts)
  np.testing.assert_array_equal(result.images[:2], images[:2])


TARGETED = {
  "ddn": functools.partial(attacks.ddn, num_steps=30),
  "fmn_l0": functools.partial(attacks.fmn, norm="l0", num_steps=30),
  "fmn_l2": functools.partial(attacks.fmn, norm="l2", num_steps=30),
  "ead_l1": functools.partial(attacks.ead, binary_search_steps=3, num_steps=30, initial_const=1.0),
  "spsa_linf": functools.partial(attacks.spsa, epsilon=0.5, num_steps=10, num_samples=30, learning_rate=0.1),
}


@pytest.mark.parametrize("name", TARGETED)
def test_success_is_that_the_target_is_reached(name, keys, images, linear_logits):
  ranked = jnp.argsort(-linear_logits(images), axis=1)
  reached = jnp.arange(16) % 4 == 3
  labels = jnp.where(reached, ranked[:, 1], ranked[:, 0])
  targets = jnp.where(reached, ranked[:, 0], ranked[:, 2])
  labels = jnp.where(jnp.arange(16) % 4 == 2, ranked[:, 3], labels)  # the prediction is neither label nor target
  result = jax.jit(lambda x: TARGETED[name](keys, linear_logits, x, labels, targets=targets))(images)
  np.testing.assert_array_equal(result.success, linear_logits(result.images).argmax(axis=1) == targets)
  assert result.success[~reached].mean() > 0.9
  np.testing.assert_array_equal(result.images[reached], images[reached])
  if result.distances is not None:
    np.testing.assert_array_equal(np.isfinite(result.distances), result.success)
    np.testing.assert_array_equal(result.distances == 0, reached)


def test_deepfool_heads_for_candidates_alone(keys, images, linear_logits):
  """The nearest boundary is not always that of the second class; with two candidates, only that class is considered."""
  ranked = jnp.argsort(-linear_logits(images), axis=1)
  labels, second = ranked[:, 0], ranked[:, 1]
  found = [attacks.deepfool(keys, linear_logits, images, labels, candidates=count) for count in (2, 5, 50)]
  predictions = [linear_logits(result.images).argmax(axis=1) for result in found]
  np.testing.assert_array_equal(predictions[0], second)
  assert (predictions[1] != second).any()
  np.testing.assert_array_equal(found[1].images, found[2].images)
  assert (found[1].distances <= found[0].distances + 1e-5).all()


def test_a_decision_is_all_that_hop_skip_jump_asks_for(problem, keys):
  logits_fn, images, labels, _, _ = problem
  decisions = lambda x: jax.nn.one_hot(logits_fn(x).argmax(axis=1), 2)
  run = lambda model: attacks.hop_skip_jump(keys[:6], model, images, labels, num_steps=3, initial_num_evals=20)
  found, expected = jax.jit(lambda: run(decisions))(), jax.jit(lambda: run(logits_fn))()
  np.testing.assert_allclose(found.images, expected.images, atol=1e-5)


def test_spsa_finds_what_is_in_the_ball_without_a_gradient(problem, keys):
  """The model has a gradient of 0. The radius is between the distances of two images: the nearer one is broken."""
  logits_fn, images, labels, gaps, normal = problem
  masked = lambda x: logits_fn(jax.lax.stop_gradient(x))
  exact = np.maximum(gaps, 0) / np.abs(normal).sum()
  options = {"epsilon": float(exact[1] + exact[2]) / 2, "num_steps": 20, "num_samples": 100, "learning_rate": 0.003}
  result = jax.jit(lambda: attacks.spsa(keys[:6], masked, images, labels, **options))()
  np.testing.assert_array_equal(result.success, [False, False, True, True, True, True])
  assert jnp.abs(result.images - images).max() <= options["epsilon"] + 1e-6
  np.testing.assert_array_equal(result.surviving_steps[:2], 20)


def test_the_curve_is_the_share_that_is_further_than_epsilon():
  distances = np.array([0.5, 0.0, np.inf, 0.25, 0.25], np.float32)
  curve = attacks.robust_accuracy_curve(distances, [0.3, 0.0, 0.25, 0.2, np.inf, 0.5])
  np.testing.assert_allclose(curve, [0.4, 0.8, 0.4, 0.8, 0.2, 0.2], atol=1e-12)


def test_the_curve_compares_as_an_attack_does(problem, keys):
  """A float64 epsilon counts as equal to a float32 distance that was rounded from the same value."""
  assert attacks.robust_accuracy_curve(np.array([0.1], np.float32), [0.1]) == 0
  logits_fn, images, labels, _, _ = problem
  run = jax.jit(lambda epsilon: attacks.ddn(keys[:6], logits_fn, images, labels, num_steps=20, epsilon=epsilon))
  distances = run(jnp.inf).distances
  radii = [0.0, *map(float, distances), 0.5 * float(distances[0])]
  robust = [1 - np.mean(run(radius).success) for radius in radii]
  np.testing.assert_allclose(attacks.robust_accuracy_curve(distances, radii), robust, rtol=1e-6)


@pytest.mark.parametrize(
  ("distances", "radii", "message"),
  [
    ([], [0.1], "distances must be"),
    ([[0.1]], [0.1], "distances must be"),
    ([np.nan], [0.1], "distances must be"),
    ([-0.1], [0.1], "distances must be"),
    ([0.1], [-0.1], "epsilons must be"),
    ([0.1], [np.nan], "epsilons must be"),
    ([0.1], 0.1, "epsilons must be"),
  ],
)
def test_a_curve_of_what_are_no_distances_is_refused(distances, radii, message):
  with pytest.raises(ValueError, match=message):
    attacks.robust_accuracy_curve(np.array(distances, float), radii)


def test_l0_is_no_norm_of_a_ball(keys, images, labels, linear_logits):
  with pytest.raises(ValueError, match="norm='l0' is unknown"):
    attacks.pgd(keys, linear_logits, images, labels, epsilon=1, step_size=1, num_steps=1, norm="l0")
  with pytest.raises(ValueError, match="norm='l0' is unknown"):
    threat_model.get_norm("l0")
