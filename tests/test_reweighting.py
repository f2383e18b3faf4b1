"""Weights: the properties that the method guarantees, and the papers' own formulas as reference values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import PartitionSpec as P

from lrat_jax import reweighting
from lrat_jax.core import sharding

vulnerability_arrays = st.integers(1, 4).flatmap(
  lambda m: hnp.arrays(np.float32, st.tuples(st.integers(1, 8), st.just(m)), elements=st.floats(-1, 1, width=32))
)
options = st.fixed_dictionaries(
  {
    "slope": st.floats(0, 20),
    "bias": st.floats(-1, 1),
    "total": st.floats(0.1, 4),
    "minimum_natural": st.floats(0, 0.1),
  }
)


def _weights(scores, **changes):
  arguments = {"total": 1.0, "minimum_natural": 0.05, "slope": 5.0, "bias": 0.0} | changes
  natural, adversarial = reweighting.local_weights(jnp.asarray(scores, jnp.float32), **arguments)
  return np.asarray(natural), np.asarray(adversarial)


def test_vulnerability_is_the_probability_gap():
  logits = np.log([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.25, 0.25, 0.5]]).astype(np.float32)
  np.testing.assert_allclose(reweighting.vulnerability(logits, np.array([0, 0, 1])), [-0.5, 0.3, 0.25], rtol=1e-5)


@pytest.mark.slow
@given(
  hnp.arrays(np.float32, (6, 4), elements=st.floats(-30, 30, width=32)), hnp.arrays(int, 6, elements=st.integers(0, 3))
)
def test_vulnerability_is_in_range_and_positive_only_when_fooled(logits, labels):
  vulnerability = np.asarray(reweighting.vulnerability(logits, labels))
  assert (np.abs(vulnerability) <= 1).all()
  others = np.where(np.eye(4, dtype=bool)[labels], -np.inf, logits).max(axis=1)
  assert (vulnerability[logits[np.arange(6), labels] > others] <= 0).all()
  assert (vulnerability[logits[np.arange(6), labels] < others] >= 0).all()


def test_vulnerability_takes_a_variant_axis():
  logits, labels = jax.random.normal(jax.random.key(0), (4, 3, 5)), jnp.arange(4)
  both = reweighting.vulnerability(logits, labels[:, None].repeat(3, axis=1))
  np.testing.assert_array_equal(both[:, 1], reweighting.vulnerability(logits[:, 1], labels))


@pytest.mark.slow
@given(vulnerability_arrays, options)
def test_a_pairs_weights_sum_to_the_total_unless_the_floor_binds_and_never_to_less(scores, options):
  natural, adversarial = _weights(scores, **options)
  sums = natural + adversarial.sum(axis=1)
  assert (natural >= np.float32(options["minimum_natural"])).all() and (adversarial >= 0).all()
  assert (sums >= options["total"] - 1e-5).all()
  free = natural > np.float32(options["minimum_natural"])
  np.testing.assert_allclose(sums[free], options["total"], rtol=1e-5)


@given(vulnerability_arrays, options, st.randoms(use_true_random=False))
def test_a_pairs_weights_depend_on_that_pair_alone(scores, options, random):
  natural, adversarial = _weights(scores, **options)
  order = list(range(len(scores)))
  random.shuffle(order)
  order = order[: random.randint(1, len(order))]
  part_natural, part_adversarial = _weights(scores[order], **options)
  np.testing.assert_array_equal(part_natural, natural[order])
  np.testing.assert_array_equal(part_adversarial, adversarial[order])


@given(vulnerability_arrays, options)
def test_a_more_vulnerable_variant_never_weighs_less(scores, options):
  _, adversarial = _weights(np.sort(scores, axis=1), **options)
  assert (np.diff(adversarial, axis=1) >= 0).all()


@pytest.mark.parametrize("num_variants", [1, 3])
def test_immune_pairs_lean_on_the_natural_image_and_fooled_ones_on_the_variants(num_variants):
  natural, adversarial = _weights([[-1.0] * num_variants, [1.0] * num_variants])
  assert natural[0] > 0.99 and adversarial[0].sum() < 0.01
  assert natural[1] == np.float32(0.05) and adversarial[1].sum() > 0.99


def test_local_weights_closed_form():
  natural, adversarial = _weights([[0.5, -0.3]], total=2.0, slope=3.0, bias=0.1)
  expected = (1 + np.tanh(3.0 * (np.array([0.5, -0.3]) - 0.1))) / 2
  np.testing.assert_allclose(adversarial[0], expected, rtol=1e-6)
  np.testing.assert_allclose(natural[0], 2.0 - expected.sum(), rtol=1e-5)


def test_uniform_weights_are_plain_adversarial_training():
  natural, adversarial = reweighting.uniform_local_weights(jnp.zeros((3, 2)), total=1.0)
  np.testing.assert_array_equal(natural, np.zeros(3))
  np.testing.assert_array_equal(adversarial, np.full((3, 2), 0.5))


among_variants = pytest.mark.parametrize(
  "weigh",
  [reweighting.max_local_weights, functools.partial(reweighting.softmax_local_weights, slope=5.0)],
  ids=["max", "softmax"],
)


@among_variants
@given(vulnerability_arrays, st.floats(0.1, 4))
def test_weights_among_variants_sum_to_the_total_and_favour_the_vulnerable(weigh, scores, total):
  natural, adversarial = (np.asarray(part) for part in weigh(jnp.asarray(scores), total=total))
  np.testing.assert_array_equal(natural, 0.0)
  assert natural.shape == scores.shape[:1] and (adversarial >= 0).all()
  np.testing.assert_allclose(adversarial.sum(axis=1), total, rtol=1e-5)
  order = np.argsort(scores, axis=1)
  assert (np.diff(np.take_along_axis(adversarial, order, axis=1), axis=1) >= -1e-6).all()


def test_max_weighs_the_most_vulnerable_variant_alone_and_ties_share():
  _, adversarial = reweighting.max_local_weights(jnp.array([[0.1, -0.9, 0.2], [0.3, 0.3, -1.0]]), total=2.0)
  np.testing.assert_array_equal(adversarial, [[0.0, 0.0, 2.0], [1.0, 1.0, 0.0]])


def test_softmax_lies_between_avg_and_max():
  scores = jnp.array([[0.1, -0.9, 0.2], [0.5, 0.4, -1.0]])
  weigh = lambda slope: reweighting.softmax_local_weights(scores, total=1.0, slope=slope)[1]
  np.testing.assert_allclose(weigh(0.0), reweighting.uniform_local_weights(scores, total=1.0)[1], rtol=1e-6)
  np.testing.assert_allclose(weigh(500.0), reweighting.max_local_weights(scores, total=1.0)[1], atol=1e-6)
  expected = np.exp(3 * np.asarray(scores)) / np.exp(3 * np.asarray(scores)).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(weigh(3.0), expected, rtol=1e-5)


def _gairat(kappa, num_steps, lam=-1.0):
  """GAIRAT's Tanh weight (arXiv:2010.01736), normalised to mean 1 as its code does, for an even number of steps."""
  half = num_steps // 2
  weights = (1 + np.tanh(lam + 5 * (half - kappa) / half)) / 2
  return weights * len(weights) / weights.sum()


def _mail(margins, slope=10.0, bias=-0.5):
  """MAIL-AT's weight 3 sigmoid(slope (PM + bias)) (arXiv:2106.07928), normalised to mean 1."""
  weights = 3 / (1 + np.exp(-slope * (margins + bias)))
  return weights / weights.mean()


def test_gairat_weights_are_the_papers():
  kappa = np.array([0, 1, 4, 5, 9, 10])
  weights = reweighting.global_weights(
    "gairat",
    vulnerabilities=jnp.zeros((6, 1)),
    surviving_fractions=jnp.asarray(kappa[:, None] / 10),
    slope=5.0,
    bias=0.2,
  )
  np.testing.assert_allclose(weights, _gairat(kappa, 10), rtol=1e-4, atol=1e-6)


def test_mail_weights_are_the_papers():
  margins = np.array([-0.9, -0.4, 0.0, 0.2, 0.8])
  weights = reweighting.global_weights(
    "mail", vulnerabilities=jnp.asarray(margins[:, None]), surviving_fractions=jnp.zeros((5, 1)), slope=5.0, bias=0.5
  )
  np.testing.assert_allclose(weights, _mail(margins), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gairat", "mail"])
@given(data=st.data())
def test_global_weights_have_mean_1(kind, data):
  scores = data.draw(vulnerability_arrays)
  slope, bias = data.draw(st.floats(0, 50)), data.draw(st.floats(-1, 1))
  weights = np.asarray(
    reweighting.global_weights(
      kind, vulnerabilities=scores, surviving_fractions=(scores + 1) / 2, slope=slope, bias=bias
    )
  )
  assert np.isfinite(weights).all() and (weights >= 0).all()
  np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("kind", ["none", "gairat", "mail"])
@pytest.mark.parametrize("num_devices", [2, 8])
def test_global_weights_are_the_same_on_any_number_of_devices(kind, num_devices):
  scores = jax.random.uniform(jax.random.key(0), (16, 2), minval=-1, maxval=1)

  def weigh(scores, axis_name=sharding.AXIS):
    return reweighting.global_weights(
      kind, vulnerabilities=scores, surviving_fractions=(scores + 1) / 2, slope=5.0, bias=0.2, axis_name=axis_name
    )

  sharded = jax.shard_map(
    weigh, mesh=sharding.make_mesh(num_devices), in_specs=P(sharding.AXIS), out_specs=P(sharding.AXIS)
  )
  np.testing.assert_allclose(jax.jit(sharded)(scores), weigh(scores, axis_name=None), rtol=1e-5)


def test_no_gradient_flows_through_any_weight():
  labels = jnp.array([0, 1, 2])

  def total(logits):
    scores = reweighting.vulnerability(logits, labels)[:, None]
    natural, adversarial = reweighting.local_weights(scores, total=1.0, minimum_natural=0.05, slope=5.0, bias=0.0)
    across = [
      reweighting.global_weights(kind, vulnerabilities=v, surviving_fractions=v, slope=5.0, bias=0.0)
      for kind in ("gairat", "mail")
      for v in (scores, logits[:, :1])
    ]
    # Also from the logits themselves, to test that each function stops the gradient and not only `vulnerability`.
    direct = reweighting.local_weights(logits, total=1.0, minimum_natural=0.05, slope=5.0, bias=0.0)
    direct += reweighting.softmax_local_weights(logits, total=1.0, slope=5.0)
    direct += reweighting.max_local_weights(logits, total=1.0)
    return sum(jnp.sum(jnp.square(w)) for w in (scores, natural, adversarial, *across, *direct))

  np.testing.assert_array_equal(jax.grad(total)(jax.random.normal(jax.random.key(0), (3, 4))), 0.0)


def test_unknown_kind_names_the_choices():
  with pytest.raises(ValueError, match=r"global_weights.kind='x' is unknown; choose from \['none', 'gairat', 'mail'\]"):
    reweighting.global_weights("x", vulnerabilities=jnp.zeros((2, 1)), surviving_fractions=jnp.zeros((2, 1)))
