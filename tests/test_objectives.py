"""The loss on a pair, against the papers' formulas written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from lrat_jax import objectives
from lrat_jax.core import sharding

LABELS = np.array([0, 2, 1])
ROWS = np.arange(3)
NATURAL = 2 * np.random.default_rng(0).normal(size=(3, 4))
ADVERSARIAL = 2 * np.random.default_rng(1).normal(size=(3, 2, 4))
NATURAL_WEIGHTS, ADVERSARIAL_WEIGHTS = np.array([0.3, 0.9, 0.0]), np.array([[0.5, 0.2], [0.1, 0.0], [0.4, 0.6]])


def _nll(logits):
  return -np.log(scipy.special.softmax(logits, axis=-1)[ROWS, LABELS])


def _divergence(logits):
  """KL(p(x) || p(x'))."""
  return scipy.special.rel_entr(scipy.special.softmax(NATURAL, axis=-1), scipy.special.softmax(logits, axis=-1)).sum(-1)


def _boosted(logits):
  others = scipy.special.softmax(logits, axis=-1)
  others[ROWS, LABELS] = 0
  return _nll(logits) - np.log(1.0001 - others.max(axis=-1))


# The loss of one member of a pair under each objective with beta 6, as in the papers' published code.
WRITTEN_OUT = {
  "ce": _nll,
  "trades": lambda logits: _nll(NATURAL) + 6 * _divergence(logits),
  "mart": lambda logits: (
    _boosted(logits) + 6 * _divergence(logits) * (1.0000001 - scipy.special.softmax(NATURAL, axis=-1)[ROWS, LABELS])
  ),
}


def _losses(objective, natural_weights, adversarial_weights):
  return objectives.pair_losses(
    objective, jnp.asarray(NATURAL), jnp.asarray(ADVERSARIAL), LABELS, natural_weights, adversarial_weights, beta=6.0
  )


def test_every_objective_has_its_formula_here():
  assert set(WRITTEN_OUT) == set(objectives.OBJECTIVES)


@pytest.mark.parametrize("objective", WRITTEN_OUT)
def test_a_pairs_loss_is_the_weighted_sum_over_its_members(objective):
  member = WRITTEN_OUT[objective]
  expected = NATURAL_WEIGHTS * member(NATURAL)
  for j in range(2):
    expected = expected + ADVERSARIAL_WEIGHTS[:, j] * member(ADVERSARIAL[:, j])
  np.testing.assert_allclose(_losses(objective, NATURAL_WEIGHTS, ADVERSARIAL_WEIGHTS), expected, rtol=1e-5)


@pytest.mark.parametrize("objective", WRITTEN_OUT)
def test_distributions_enter_the_cross_entropy_alone(objective):
  """MART's margin and weight use the true class."""
  q = np.full((3, 4), 0.1)
  q[ROWS, LABELS] = 0.7
  change = lambda logits: -((q - np.eye(4)[LABELS]) * scipy.special.log_softmax(logits, axis=-1)).sum(axis=-1)
  of = change if objective != "trades" else lambda logits: change(NATURAL)
  expected = NATURAL_WEIGHTS * (WRITTEN_OUT[objective](NATURAL) + of(NATURAL))
  for j in range(2):
    member = WRITTEN_OUT[objective](ADVERSARIAL[:, j]) + of(ADVERSARIAL[:, j])
    expected = expected + ADVERSARIAL_WEIGHTS[:, j] * member
  given = (jnp.asarray(NATURAL), jnp.asarray(ADVERSARIAL), jnp.asarray(q), NATURAL_WEIGHTS, ADVERSARIAL_WEIGHTS)
  np.testing.assert_allclose(objectives.pair_losses(objective, *given, beta=6.0), expected, rtol=1e-5)


def test_weights_of_plain_training_give_the_papers_losses():
  plain = (np.zeros(3), np.tile([1.0, 0.0], (3, 1)))
  adversarial = ADVERSARIAL[:, 0]
  np.testing.assert_allclose(_losses("ce", *plain), _nll(adversarial), rtol=1e-5)
  np.testing.assert_allclose(_losses("trades", *plain), _nll(NATURAL) + 6 * _divergence(adversarial), rtol=1e-5)


def test_a_trades_pair_whose_weight_is_all_natural_is_plain_cross_entropy():
  natural_only = (np.ones(3), np.zeros((3, 2)))
  np.testing.assert_allclose(_losses("trades", *natural_only), _nll(NATURAL), rtol=1e-5)


@pytest.mark.parametrize("objective", ["trades", "mart"])
def test_gradients_flow_through_both_answers(objective):
  def loss(natural, adversarial):
    return objectives.pair_losses(
      objective, natural, adversarial, LABELS, jnp.zeros(3), jnp.ones((3, 2)), beta=6.0
    ).sum()

  gradients = jax.grad(loss, argnums=(0, 1))(jnp.asarray(NATURAL), jnp.asarray(ADVERSARIAL))
  assert all(np.abs(gradient).max() > 1e-2 for gradient in gradients)


def test_logit_pairing_is_the_divergence_from_the_source_where_that_is_right():
  generator = np.random.default_rng(0)
  logits, labels = generator.normal(size=(8, 3, 4)), np.arange(8) % 4
  logits[np.arange(4), 1, labels[:4]] += 3.0  # there, the source is classified correctly
  right = logits[:, 1].argmax(axis=1) == labels
  odds = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  kl = np.mean([(odds[:, 1] * np.log(odds[:, 1] / odds[:, j])).sum(axis=-1) for j in (0, 2)], axis=0)
  pairing = objectives.logit_pairing(jnp.asarray(logits), jnp.asarray(labels), 1)
  np.testing.assert_allclose(jnp.mean(pairing), kl[right].mean(), rtol=1e-4)
  np.testing.assert_array_equal(np.asarray(pairing)[~right], 0.0)
  assert 4 <= right.sum() < 8

  specs = (sharding.BATCHED, sharding.BATCHED)
  by_device = functools.partial(objectives.logit_pairing, source=1, axis_name=sharding.AXIS)
  sharded = jax.jit(sharding.shard_map(by_device, sharding.make_mesh(2), specs, sharding.BATCHED))
  np.testing.assert_allclose(sharded(jnp.asarray(logits), jnp.asarray(labels)), pairing, rtol=1e-5)

  wrong = (logits[:, 1].argmax(axis=1) + 1) % 4  # every source is misclassified
  gradient = jax.grad(lambda x: objectives.logit_pairing(x, jnp.asarray(wrong), 1).mean())(jnp.asarray(logits))
  np.testing.assert_array_equal(gradient, 0.0)
  gradient = jax.grad(lambda x: objectives.logit_pairing(x, jnp.asarray(labels), 1).mean())(jnp.asarray(logits))
  assert np.abs(gradient[right]).min(axis=-1).max() > 0 and np.isfinite(gradient).all()


@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
def test_confident_answers_stay_finite(objective):
  extreme = jnp.array([[500.0, 0, 0, 0], [0, 500.0, 0, 0], [0, 0, 500.0, 0]])
  arguments = (LABELS, jnp.ones(3), jnp.ones((3, 1)))
  loss = lambda natural: objectives.pair_losses(objective, natural, -extreme[:, None], *arguments, beta=6.0).sum()
  value, gradient = jax.value_and_grad(loss)(extreme)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_no_natural_logits_are_natural_weights_of_zero():
  labels, adversarial = jnp.array([0, 1]), jax.random.normal(jax.random.key(1), (2, 1, 3))
  arguments = (adversarial, labels, jnp.zeros(2), jnp.ones((2, 1)))
  with_natural = objectives.pair_losses("ce", jnp.ones((2, 3)), *arguments)
  np.testing.assert_array_equal(objectives.pair_losses("ce", None, *arguments), with_natural)


def test_an_unknown_objective_names_the_choices():
  with pytest.raises(ValueError, match=r"objective='hinge' is unknown; choose from \['ce', 'trades', 'mart'\]"):
    objectives.pair_losses("hinge", None, jnp.zeros((1, 1, 2)), jnp.zeros(1, int), jnp.zeros(1), jnp.ones((1, 1)))
