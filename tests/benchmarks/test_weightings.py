"""Candidate weights inside a pair: their sums, order and limits, and the runs that the search plans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import weightings
from lrat_jax import reweighting
from lrat_jax.compare import methods
from lrat_jax.compare.options import parse

FIELDS = {"total": 2.0, "minimum_natural": 0.1, "slope": 3.0, "bias": -0.5}
CANDIDATES = ["standardised", "floored_max", "natural_of_least", "by_norm"]
SCORES = jax.random.uniform(jax.random.key(0), (7, 3), minval=-1.0, maxval=1.0)


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_pairs_weights_are_its_total_and_follow_vulnerability(name):
  natural, adversarial = getattr(weightings, name)(SCORES, **FIELDS)
  np.testing.assert_allclose(natural + adversarial.sum(axis=1), 2.0, rtol=1e-6)
  assert (natural >= 0).all() and (adversarial > 0).all()
  order = np.argsort(SCORES if name != "by_norm" else jnp.broadcast_to(SCORES.mean(axis=0), SCORES.shape), axis=1)
  assert (np.diff(np.take_along_axis(np.asarray(adversarial), order, axis=1), axis=1) >= 0).all()


@pytest.mark.parametrize("name", CANDIDATES[:3])
def test_weights_depend_on_their_pair_alone_and_go_with_the_order_of_the_attacks(name):
  weigh = lambda scores: getattr(weightings, name)(scores, **FIELDS)
  natural, adversarial = weigh(SCORES)
  one_natural, one_adversarial = weigh(SCORES[4:5, ::-1])
  np.testing.assert_allclose(one_natural, natural[4:5], rtol=1e-6)
  np.testing.assert_allclose(one_adversarial, adversarial[4:5, ::-1], rtol=1e-6)


def test_limits():
  equal = jnp.full((2, 3), 0.3)
  for name in CANDIDATES:
    _, adversarial = getattr(weightings, name)(equal, **FIELDS)
    np.testing.assert_allclose(adversarial, adversarial[:1, :1].repeat(2, 0).repeat(3, 1), rtol=1e-6)
  scaled = weightings.standardised(0.2 + 0.01 * SCORES, **FIELDS), weightings.standardised(SCORES, **FIELDS)
  np.testing.assert_allclose(scaled[0][1], scaled[1][1], rtol=1e-4)
  whole = weightings.floored_max(SCORES, total=1.0, minimum_natural=0.0)
  np.testing.assert_array_equal(whole[1], reweighting.max_local_weights(SCORES, total=1.0)[1])
  least, _ = weightings.natural_of_least(jnp.array([[-0.9, 0.9], [0.9, 0.9]]), **FIELDS)
  curve = reweighting.increasing_weight(jnp.array([-0.9, 0.9]), slope=3.0, bias=-0.5)
  np.testing.assert_allclose(least, [2 * (1 - curve[0]), 0.1], rtol=1e-6)


def test_the_search_plans_every_candidate_on_validation_images(tmp_path):
  options = parse(weightings.arguments(str(tmp_path), "0,1", 2))
  found = [methods.parse(name) for name in options.methods]
  chosen = {"data": options.data, "suite": options.suite, "overrides": options.overrides, "workdir": options.workdir}
  runs = methods.plan(found, options.seeds, **chosen)
  assert options.jobs == 2 and len(runs) == 2 * len(weightings.METHODS)
  assert {run.config.eval.split for run in runs} == {"validation"}
  assert all(len(run.config.train_attacks) in (1, 3) for run in runs)
  kinds = {str(run.config.local_weights.kind).removeprefix("benchmarks.weightings:") for run in runs}
  assert set(CANDIDATES) < kinds
