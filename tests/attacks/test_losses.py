"""Attack losses against values computed by NumPy and SciPy from their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from lrat_jax.attacks import losses

LOGITS = np.array([[2.0, -1.0, 0.5, 0.0], [0.1, 0.2, 3.0, -2.0], [1.0, 4.0, 3.0, 2.0]], np.float32)
LABELS = np.array([0, 1, 2])


def test_cross_entropy_is_minus_log_probability():
  expected = -np.log(scipy.special.softmax(LOGITS.astype(np.float64), axis=1)[np.arange(3), LABELS])
  np.testing.assert_allclose(losses.cross_entropy(LOGITS, LABELS), expected, rtol=1e-6)


def test_cross_entropy_goes_by_distributions():
  q = np.array([[0.7, 0.1, 0.1, 0.1], [0.0, 0.5, 0.5, 0.0], [0.25, 0.25, 0.25, 0.25]], np.float32)
  expected = -(q * scipy.special.log_softmax(LOGITS, axis=1)).sum(axis=1)
  np.testing.assert_allclose(losses.cross_entropy(LOGITS, jnp.asarray(q)), expected, rtol=1e-6)
  gradient = jax.grad(lambda z: losses.cross_entropy(z, jnp.asarray(q)).sum())(jnp.asarray(LOGITS))
  np.testing.assert_allclose(gradient, scipy.special.softmax(LOGITS, axis=1) - q, atol=1e-6)
  assert losses.true_classes(jnp.asarray(q)).tolist() == [0, 1, 0]
  assert losses.true_classes(LABELS) is LABELS
  with pytest.raises(ValueError, match=r"labels are distributions of shape \(3, 5\), but the logits have .*\(3, 4\)"):
    losses.cross_entropy(LOGITS, jnp.ones((3, 5)) / 5)


def test_a_one_hot_distribution_is_its_class_to_the_bit():
  logits = 5 * jax.random.normal(jax.random.key(0), (64, 10))
  labels = jnp.arange(64) % 10
  found = [
    jax.jit(jax.value_and_grad(lambda z, q=q: jnp.sum(jnp.sin(losses.cross_entropy(z, q)))))(logits)
    for q in (labels, jax.nn.one_hot(labels, 10))
  ]
  jax.tree.map(np.testing.assert_array_equal, *found)


def test_distributions_may_share_nothing_with_a_class_that_is_left_out():
  logits, q = jnp.array([[1.0, 0.0, -jnp.inf], [0.0, 2.0, -jnp.inf]]), jnp.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
  few = losses.cross_entropy(logits[:, :2], q[:, :2])
  np.testing.assert_allclose(losses.cross_entropy(logits, q), few, rtol=1e-6)
  assert np.isfinite(jax.grad(lambda z: losses.cross_entropy(z, q).sum())(logits)).all()
  assert jnp.isposinf(losses.cross_entropy(logits, jnp.array([[0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]))).all()


def test_margin_is_best_other_minus_true():
  np.testing.assert_allclose(losses.margin(LOGITS, LABELS), [0.5 - 2.0, 3.0 - 0.2, 4.0 - 3.0], rtol=1e-6)


def test_cw_has_confidence_50_and_stops_there():
  np.testing.assert_allclose(losses.cw(LOGITS, LABELS), np.array([-1.5, 2.8, 1.0]) - 50.0, rtol=1e-6)
  assert losses.cw(jnp.array([[0.0, 80.0]]), jnp.array([0])) == 0.0


def test_dlr_is_the_ratio_of_logit_differences():
  # Sorted: 2, 0.5, 0 | 3, 0.2, 0.1 | 4, 3, 2.
  expected = [(0.5 - 2.0) / (2.0 - 0.0), (3.0 - 0.2) / (3.0 - 0.1), (4.0 - 3.0) / (4.0 - 2.0)]
  np.testing.assert_allclose(losses.dlr(LOGITS, LABELS), expected, rtol=1e-6)


@pytest.mark.slow
def test_dlr_is_1_where_the_true_class_comes_third():
  logits = jnp.array([[1.1, 4.3, 3.2]])
  np.testing.assert_allclose(losses.dlr(logits, jnp.array([0])), 1.0, rtol=1e-6)
  np.testing.assert_array_equal(jax.grad(lambda z: losses.dlr(z, jnp.array([0])).sum())(logits), 0.0)


def test_dlr_ignores_shift_and_scale_of_the_logits():
  np.testing.assert_allclose(losses.dlr(100 * LOGITS + 7, LABELS), losses.dlr(LOGITS, LABELS), rtol=1e-5)


def test_dlr_refuses_two_classes():
  with pytest.raises(ValueError, match="needs at least 3 classes, but the model has 2; use loss='cw'"):
    losses.dlr(jnp.zeros((1, 2)), jnp.zeros(1, int))


def test_targeted_dlr_is_the_ratio_of_logit_differences():
  # Sorted: 2, 0.5, 0, -1 | 3, 0.2, 0.1, -2 | 4, 3, 2, 1.
  targets = np.array([3, 0, 2])
  labels = np.array([0, 1, 1])
  expected = [(0.0 - 2.0) / (2.0 - (0.0 - 1.0) / 2), (0.1 - 0.2) / (3.0 - (0.1 - 2.0) / 2), (3.0 - 4.0) / (4.0 - 1.5)]
  np.testing.assert_allclose(losses.dlr_targeted(LOGITS, labels, targets), expected, rtol=1e-6)


def test_targeted_dlr_refuses_three_classes():
  with pytest.raises(ValueError, match="needs at least 4 classes, but the model has 3; use loss='margin_targeted'"):
    losses.dlr_targeted(jnp.zeros((1, 3)), jnp.zeros(1, int), jnp.zeros(1, int))


def test_targets_go_from_the_likeliest_wrong_class_down():
  # The last image is misclassified: its label is skipped, whatever its rank.
  ranked = [losses.choose_targets(LOGITS, jnp.array([0, 2, 2]), None, rank).tolist() for rank in (1, 2, 3)]
  assert ranked == [[2, 1, 1], [3, 0, 3], [1, 3, 0]]


def test_targeted_losses_name_the_choices():
  with pytest.raises(ValueError, match=r"loss='kl' takes no targets; choose from \['ce', .*'margin_targeted'\]"):
    losses.targeted("kl", jnp.zeros(1, int), jnp.zeros(1, int))


def test_logits_that_are_not_finite_are_no_right_answer():
  logits = np.tile(np.array([3.0, 0.0, -1.0]), (6, 1))
  logits[1:5] = [[3, np.nan, 0], [np.inf, 0, 0], [-np.inf] * 3, [0, -1, -np.inf]]
  # -inf is a class that the model leaves out, but not all classes may be left out.
  assert losses.is_correct(logits, np.zeros(6, int)).tolist() == [True, False, False, False, True, True]
  assert not losses.is_correct(logits, np.full(6, 1)).any()


_LEFT_OUT = np.array([[2.0, -1.0, 0.5, -np.inf, 0.0, -np.inf], [0.1, 0.2, 3.0, -np.inf, -2.0, -np.inf]], np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*losses.LOSSES, *losses.TARGETED_LOSSES])
@pytest.mark.parametrize("classes", [[0, 1, 2, 4], [0, 1, 2], [0, 1]])
def test_classes_that_are_left_out_count_nothing(name, classes):
  """With logits of -inf, loss and gradient are those of the other logits alone, or the margin's if DLR has too few."""
  few = _LEFT_OUT[:, classes]
  logits = np.full_like(_LEFT_OUT, -np.inf)
  logits[:, classes] = few
  labels, targets = np.array([0, 1]), np.array([1, 0])
  least = {"dlr": 3, "dlr_targeted": 3}.get(name, 2)
  alone = name if len(classes) >= least else {"dlr": "margin", "dlr_targeted": "margin_targeted"}[name]

  def loss(z, name, clean):
    if name in losses.TARGETED_LOSSES:
      return losses.targeted(name, labels, targets)(z)
    return losses.surrogate(name, lambda images: clean, jnp.zeros((2, 2, 2, 1)), labels)(z)

  value, gradient = jax.value_and_grad(lambda z: loss(z, name, logits[::-1]).sum())(logits)
  assert np.isfinite(gradient).all() and (gradient[:, np.isneginf(logits[0])] == 0).all()
  assert np.abs(gradient[:, classes]).max() > 0
  if len(classes) > 3 or name != "dlr_targeted":
    expected, slopes = jax.value_and_grad(lambda z: loss(z, alone, few[::-1]).sum())(few)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, classes], slopes, rtol=1e-5, atol=1e-7)


def test_no_target_is_a_class_that_is_left_out():
  ranked = [losses.choose_targets(_LEFT_OUT, jnp.array([0, 1]), None, rank).tolist() for rank in (1, 2, 3, 4, 5)]
  assert ranked == [[2, 2], [4, 0], [1, 4], [1, 4], [1, 4]]


def test_kl_is_from_clean_to_adversarial():
  clean, adversarial = scipy.special.softmax(LOGITS, axis=1), scipy.special.softmax(LOGITS[::-1], axis=1)
  expected = [scipy.stats.entropy(p, q) for p, q in zip(clean, adversarial, strict=True)]
  np.testing.assert_allclose(losses.kl(LOGITS[::-1], LOGITS), expected, rtol=1e-5)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_surrogates_rise_with_the_chance_of_a_mistake(name):
  confident = jnp.array([[5.0, 0.0, -1.0]])
  surrogate = losses.surrogate(name, lambda x: confident, jnp.zeros((1, 2, 2, 1)), jnp.array([0]))
  assert surrogate(jnp.array([[1.0, 2.0, -1.0]])) > surrogate(confident)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_gradients_are_finite_at_extreme_logits(name):
  extreme = jnp.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
  surrogate = losses.surrogate(name, lambda x: extreme[::-1], jnp.zeros((2, 2, 2, 1)), jnp.array([0, 1]))
  assert np.isfinite(jax.grad(lambda z: surrogate(z).sum())(extreme)).all()


def test_unknown_loss_names_the_choices():
  with pytest.raises(ValueError, match=r"loss='hinge' is unknown; choose from \['ce', 'cw', 'dlr', 'margin', 'kl'\]"):
    losses.surrogate("hinge", lambda x: x, jnp.zeros((1, 2, 2, 1)), jnp.array([0]))
