"""Attacks that are built from plain configuration data."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import attacks
from lrat_jax.attacks import registry
from tests.helpers import features

PGD = {"name": "pgd", "norm": "linf", "epsilon": "8/255", "step_size": "2/255", "num_steps": 3}


def test_fractions_mean_what_they_say():
  assert attacks.from_config(PGD).keywords["epsilon"] == 8 / 255
  assert attacks.from_config(PGD | {"epsilon": 0.031}).keywords["epsilon"] == 0.031
  assert attacks.from_config(PGD | {"epsilon": "0.8/255"}).keywords["epsilon"] == pytest.approx(0.8 / 255, rel=1e-12)


def test_configured_attack_equals_the_direct_call(keys, images, labels, linear_logits):
  direct = attacks.pgd(keys, linear_logits, images, labels, epsilon=8 / 255, step_size=2 / 255, num_steps=3)
  np.testing.assert_array_equal(attacks.from_config(PGD)(keys, linear_logits, images, labels).images, direct.images)


def test_scaled_attack_has_scaled_lengths_and_the_same_steps(keys, images, labels, linear_logits):
  half = attacks.scaled(attacks.from_config(PGD), 0.5)
  direct = attacks.pgd(keys, linear_logits, images, labels, epsilon=4 / 255, step_size=1 / 255, num_steps=3)
  np.testing.assert_array_equal(half(keys, linear_logits, images, labels).images, direct.images)


def test_scaling_may_be_traced(keys, images, labels, linear_logits):
  attack = attacks.from_config({"name": "fgsm", "epsilon": "0.1"})
  run = jax.jit(lambda factor: attacks.scaled(attack, factor)(keys, linear_logits, images, labels).images)
  np.testing.assert_array_equal(run(0.0), images)


@pytest.mark.slow
@pytest.mark.parametrize(("most", "microbatch_size"), [(None, 16), (4, 4), (5, 4), (99, 16), (15, 8)])
def test_a_few_images_at_a_time_fare_as_all_together(keys, images, labels, linear_logits, most, microbatch_size):
  attack, seen = attacks.from_config(PGD | {"num_restarts": 2}), set()

  def watched(images):
    seen.add(len(images))
    return linear_logits(images)

  whole = attack(keys, linear_logits, images, labels)
  parts = attacks.microbatch(attack, most)(keys, watched, images, labels)
  assert seen == {microbatch_size}
  np.testing.assert_allclose(parts.images, whole.images, atol=1e-6)
  np.testing.assert_array_equal(parts.surviving_steps, whole.surviving_steps)


def test_a_single_key_is_split_over_all_images_and_no_part_is_empty(images, labels, linear_logits):
  attack, key = attacks.from_config(PGD), jax.random.key(5)
  whole = attack(key, linear_logits, images, labels)
  parts = attacks.microbatch(attack, 4)(key, linear_logits, images, labels)
  np.testing.assert_allclose(parts.images, whole.images, atol=1e-6)
  with pytest.raises(ValueError, match="most=0 must be an integer from 1"):
    attacks.microbatch(attack, 0)


def test_images_without_a_divisor_near_the_most_go_through_at_once(keys, images, labels, linear_logits):
  sizes = []
  count_and_answer = lambda images: sizes.append(len(images)) or linear_logits(images)
  attacks.microbatch(attacks.from_config(PGD), 8)(keys[:13], count_and_answer, images[:13], labels[:13])
  assert set(sizes) == {13}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"name": "gpd"}, r"name='gpd' is not an attack; choose from .*'pgd'"),
    ({"eps": 0.1}, "eps=0.1 is not an argument of 'pgd'; choose from"),
    ({"epsilon": "8/0"}, "epsilon='8/0' is not a number"),
    ({"epsilon": "big"}, "epsilon='big' is not a number"),
    ({"epsilon": float("nan")}, "epsilon=nan is not a number"),
  ],
)
def test_bad_configurations_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    attacks.from_config(PGD | change)


def test_missing_arguments_are_named():
  with pytest.raises(ValueError, match="num_steps is missing for 'pgd'"):
    attacks.from_config({key: value for key, value in PGD.items() if key != "num_steps"})


FEW_STEPS = {
  "pgd": {"step_size": 0.05, "num_steps": 3},
  "cw": {"step_size": 0.05, "num_steps": 3},
  "fgsm": {},
  "apgd": {"num_steps": 5},
  "fab": {"num_steps": 3},
  "square": {"num_queries": 15},
  "carlini_wagner": {"norm": "l2", "binary_search_steps": 2, "num_steps": 10, "learning_rate": 0.1},
  "ddn": {"norm": "l2", "num_steps": 5},
  "fmn": {"norm": "linf", "num_steps": 5},
  "deepfool": {"norm": "linf", "num_steps": 3},
  "ead": {"norm": "l1", "binary_search_steps": 2, "num_steps": 5, "learning_rate": 0.1},
  "hop_skip_jump": {"norm": "linf", "num_steps": 1, "initial_num_evals": 10},
  "spsa": {"norm": "linf", "num_steps": 2, "num_samples": 4},
  "spatial": {"num_rotations": 2, "num_translations": 2},
  "corruption": {"kind": "contrast", "severity": 5},
  "unforeseen": {"kind": "stadv", "epsilon": 0.1, "num_steps": 3},
  "lpips": {"epsilon": 0.3, "features_fn": features, "num_steps": 3, "num_rounds": 2},
  "msd": {"radii": {"linf": 0.2, "l1": 3.0}, "step_sizes": {"linf": 0.1, "l1": 1.0}, "num_steps": 3},
}
IN_A_BALL = sorted(set(FEW_STEPS) - {"spatial", "corruption", "unforeseen", "msd", "lpips"})


@pytest.mark.parametrize("name", sorted(set(registry.REGISTRY) - {"hop_skip_jump"}))
def test_all_steps_survive_on_a_model_that_is_always_right(name, keys, images):
  def confident(images):
    return 1e-3 * jnp.mean(images, axis=(1, 2, 3))[:, None] * jnp.arange(4.0) + jnp.array([5.0, 0.0, 0.0, 0.0])

  config = {"name": name} | FEW_STEPS[name] | ({"epsilon": 0.2} if name in IN_A_BALL else {})
  config |= {"num_restarts": 2} if "num_restarts" in registry.defaults(name) else {}
  attack = attacks.from_config(config)
  found = attack(keys[:2], confident, images[:2], jnp.zeros(2, int))
  assert found.surviving_steps.tolist() == [attacks.most_surviving_steps(attack)] * 2


def test_the_most_surviving_steps_may_follow_from_defaults_or_be_unknown():
  assert attacks.most_surviving_steps(attacks.from_config({"name": "apgd", "epsilon": 0.1})) == 100
  with pytest.raises(ValueError, match="'hop_skip_jump' has no fixed number of steps"):
    attacks.most_surviving_steps(attacks.from_config({"name": "hop_skip_jump", "epsilon": 1.0}))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(registry.REGISTRY))
def test_every_attack_says_where_the_model_is_wrong(name, keys, images, cnn_logits):
  predictions = cnn_logits(images).argmax(axis=1)
  labels = jnp.where(jnp.arange(16) % 4 == 3, (predictions + 1) % 5, predictions)
  config = {"name": name} | FEW_STEPS[name] | ({"epsilon": 0.2} if name in IN_A_BALL else {})
  result = attacks.from_config(config)(keys, cnn_logits, images, labels)
  np.testing.assert_array_equal(result.success, cnn_logits(result.images).argmax(axis=1) != labels)
  assert result.success[3::4].any() and result.success.dtype == bool


FEW_NORMS = {
  "carlini_wagner": ("L2",),
  "ddn": ("L2",),
  "deepfool": ("Linf", "L2"),
  "ead": ("L1",),
  "hop_skip_jump": ("Linf", "L2"),
  "spsa": ("Linf",),
}
NORMS = {name: FEW_NORMS.get(name, ("Linf", "L2", "L1")) for name in IN_A_BALL}


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name, norms in NORMS.items() for norm in norms])
def test_a_norm_is_the_same_however_it_is_written(name, norm, keys, images, labels, cnn_logits):
  config = {"name": name} | FEW_STEPS[name] | {"epsilon": {"Linf": 0.1, "L2": 0.6, "L1": 3.0}[norm]}

  def program(norm):
    attack = attacks.from_config(config | {"norm": norm})
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(lambda x: attack(keys, cnn_logits, x, labels))(images)))

  assert program(norm) == program(norm.lower())
