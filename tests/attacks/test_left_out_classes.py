"""Logits of -inf: every attack ignores classes that a model leaves out, and they cannot be labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import attacks
from lrat_jax.attacks import registry

BALL = {"epsilon": 0.1}
SUITE = {
  "fgsm": BALL,
  "pgd": BALL | {"step_size": 0.03, "num_steps": 3, "num_restarts": 2},
  "pgd kl": BALL | {"step_size": 0.03, "num_steps": 3, "loss": "kl"},
  "pgd dlr": BALL | {"step_size": 0.03, "num_steps": 3, "loss": "dlr"},
  "cw": BALL | {"step_size": 0.03, "num_steps": 3},
  "apgd": BALL | {"num_steps": 5},
  "apgd l1": {"epsilon": 3.0, "norm": "l1", "num_steps": 5},
  "apgd dlr": BALL | {"num_steps": 5, "loss": "dlr"},
  "apgd targeted": BALL | {"num_steps": 5, "loss": "margin_targeted", "target_rank": 2},
  "fab": BALL | {"num_steps": 3},
  "fab targeted": BALL | {"num_steps": 3, "target_rank": 2},
  "square": BALL | {"num_queries": 5},
  "carlini_wagner": {"binary_search_steps": 2, "num_steps": 5, "learning_rate": 0.1, "initial_const": 1.0},
  "ddn": {"num_steps": 5},
  "fmn": {"num_steps": 5},
  "deepfool": {"num_steps": 3},
  "ead": {"binary_search_steps": 2, "num_steps": 5, "initial_const": 1.0},
  "hop_skip_jump": {"num_steps": 1, "initial_num_evals": 10},
  "spsa": BALL | {"num_steps": 2, "num_samples": 5},
  "spatial": {"num_rotations": 2, "num_translations": 2},
  "corruption": {"kind": "contrast", "severity": 3},
  "unforeseen": {"kind": "stadv", "epsilon": 0.1, "num_steps": 3},
}


@pytest.fixture(scope="module")
def models(linear_weights):
  """A model of three classes, and the same with two classes that are left out, one before and one after them."""
  few = lambda images: images.reshape(len(images), -1) @ jnp.asarray(linear_weights[:, 1:4])
  used = (jnp.arange(5) > 0) & (jnp.arange(5) < 4)
  masked = lambda images: jnp.where(used, images.reshape(len(images), -1) @ jnp.asarray(linear_weights), -jnp.inf)
  return few, masked


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITE)
def test_an_attack_fares_as_without_them(name, models, keys, images):
  few, masked = models
  labels = few(images).argmax(axis=1)
  attack = functools.partial(registry.REGISTRY[name.split()[0]], **SUITE[name])
  alone, found = attack(keys, few, images, labels), attack(keys, masked, images, labels + 1)
  np.testing.assert_allclose(found.images, alone.images, atol=1e-5)
  np.testing.assert_array_equal(found.success, alone.success)
  np.testing.assert_array_equal(found.surviving_steps, alone.surviving_steps)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["standard", "plus"])
def test_autoattack_fares_as_without_them(version, models, images):
  few, masked = models
  labels = np.asarray(few(images).argmax(axis=1))
  run = functools.partial(
    attacks.autoattack, jax.random.key(0), images=images, epsilon=0.03, chunk_size=16, version=version,
    overrides={"square": {"num_queries": 20}},
  )  # fmt: skip
  alone, found = run(few, labels=labels), run(masked, labels=labels + 1)
  assert found.clean_accuracy == 1.0 and 0 < found.robust_accuracy < 1
  np.testing.assert_array_equal(found.broken_by, alone.broken_by)
  np.testing.assert_allclose(found.images, alone.images, atol=1e-5)
  assert "2 of 5 logits are -inf on all images, and no classes to attack." in found.warnings


def test_a_label_that_is_left_out_is_refused(models, keys, images):
  with pytest.raises(ValueError, match=r"invalid logits for image 0 \(16 in all\): they are -inf for its label"):
    attacks.fgsm(keys, models[1], images, jnp.zeros(16, int), epsilon=0.1)
