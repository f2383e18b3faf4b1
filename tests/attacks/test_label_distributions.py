"""Attacks on images with label distributions: what cross-entropy uses, what counts as success, invalid input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from lrat_jax import attacks

PGD = functools.partial(attacks.pgd, epsilon=0.1, step_size=0.03, num_steps=4)
MSD = functools.partial(attacks.msd, radii={"linf": 0.1}, step_sizes={"linf": 0.03}, num_steps=4)


@pytest.fixture(scope="module")
def soft(linear_weights):
  """Distributions with 0.6 for the label and 0.4 for a second class: (labels, distributions)."""
  num_classes, labels = linear_weights.shape[1], jnp.arange(16) % 3
  second = jax.nn.one_hot((labels + 1) % 3, num_classes)
  return labels, 0.6 * jax.nn.one_hot(labels, num_classes) + 0.4 * second


def test_the_first_step_is_up_the_cross_entropy_from_the_distribution(images, linear_weights, linear_logits, soft):
  labels, q = soft
  result = attacks.fgsm(jax.random.key(0), linear_logits, images, labels, epsilon=1e-3, label_distributions=q)
  slope = (scipy.special.softmax(linear_logits(images), axis=1) - q) @ linear_weights.T
  expected = np.clip(images + 1e-3 * np.sign(slope).reshape(images.shape), 0, 1)
  np.testing.assert_allclose(result.images, expected, atol=1e-6)
  np.testing.assert_array_equal(result.success, linear_logits(result.images).argmax(axis=1) != labels)


@pytest.mark.parametrize("attack", [PGD, MSD, functools.partial(attacks.fgsm, epsilon=0.1)])
def test_a_one_hot_distribution_is_its_class(attack, keys, images, linear_logits, soft):
  labels, q = soft
  run = jax.jit(functools.partial(attack, keys, linear_logits, images, labels))
  whole, one_hot = run(), run(label_distributions=jax.nn.one_hot(labels, q.shape[1]))
  jax.tree.map(np.testing.assert_array_equal, one_hot, whole)
  assert np.abs(run(label_distributions=q).images - whole.images).max() > 0.01


def test_other_losses_go_by_the_true_class(keys, images, linear_logits, soft):
  labels, q = soft
  for loss in ("cw", "kl"):
    run = functools.partial(PGD, keys, linear_logits, images, labels, loss=loss)
    np.testing.assert_array_equal(run(label_distributions=q).images, run().images)


def test_a_few_images_at_a_time_keep_their_distributions(keys, images, linear_logits, soft):
  labels, q = soft
  attack = attacks.from_config({"name": "pgd", **PGD.keywords})
  whole = attack(keys, linear_logits, images, labels, label_distributions=q)
  parts = attacks.microbatch(attack, 4)(keys, linear_logits, images, labels, label_distributions=q)
  np.testing.assert_allclose(parts.images, whole.images, atol=1e-6)


def test_which_attacks_take_them():
  named = lambda name, **more: attacks.from_config({"name": name, "epsilon": 0.1, **more})
  assert attacks.takes_distributions(attacks.scaled(named("pgd", step_size=0.1, num_steps=1), 0.5))
  assert not attacks.takes_distributions(named("cw", step_size=0.1, num_steps=1))


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (np.zeros(16), r"label_distributions must be floats of shape \(16, classes\), a row per image, not float64"),
    (np.zeros((16, 3), int), r"label_distributions must be floats"),
    (np.zeros((15, 3)), r"label_distributions must be floats"),
    (np.full((16, 4), 0.5), r"label_distributions\[0\] is not a distribution: its entries must be 0 or more and sum"),
    (np.tile([1.5, -0.5], (16, 1)), r"label_distributions\[0\] is not a distribution"),
    (np.full((16, 2), 0.5), r"labels are distributions of shape \(16, 2\), but the logits have shape"),
  ],
)
def test_what_is_no_distribution_is_named(value, message, keys, images, labels, linear_logits):
  with pytest.raises(ValueError, match=message):
    PGD(keys, linear_logits, images, labels, label_distributions=value)
