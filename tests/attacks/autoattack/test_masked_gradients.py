"""AutoAttack is not fooled by masked gradients, rounded images or random models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from tests.attacks.autoattack.case import linear, run

FEW_QUERIES = {"square": {"num_queries": 100}}


# Changes of the logits that keep the prediction on every image, but hide or weaken the gradients.
MASKS = {
  "large": lambda logits: 1e4 * logits,
  "small": lambda logits: 1e-4 * logits,
  "probabilities": jax.nn.softmax,
  "saturated": lambda logits: jnp.tanh(logits / 8),
  "steep": lambda logits: logits**3,
  "moved": lambda logits: logits + 1e3 * jnp.cos(logits.sum(axis=1, keepdims=True)),
}


def _masked(mask, weights, images):
  return mask(linear(weights, images))


def _rounded(weights, images):
  return linear(weights, jnp.round(images * 20) / 20)


@pytest.fixture(scope="module")
def unmasked(model, images):
  """The model's predictions as labels, and which images are robust to AutoAttack."""
  labels = np.asarray(model(images).argmax(axis=1))
  robust = run(model, images, labels, epsilon=0.03, version="standard", overrides=FEW_QUERIES).robust
  assert 0.2 < robust.mean() < 0.8
  return labels, robust


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
def test_masked_logits_do_not_fool_it(mask, images, unmasked, linear_weights):
  labels, robust = unmasked
  model = Partial(functools.partial(_masked, MASKS[mask]), jnp.asarray(linear_weights))
  report = run(model, images, labels, epsilon=0.03, version="standard", overrides=FEW_QUERIES)
  assert report.clean_accuracy == 1.0 and (report.robust != robust).sum() <= 1


@pytest.mark.slow
def test_rounded_images_do_not_fool_it(model, images, linear_weights):
  # The epsilon moves every pixel by two levels of the rounding.
  rounded = Partial(_rounded, jnp.asarray(linear_weights))
  labels = np.asarray(rounded(images).argmax(axis=1))
  unmasked = run(model, images, labels, epsilon=0.1, version="standard", overrides=FEW_QUERIES)
  report = run(rounded, images, labels, epsilon=0.1, version="standard", overrides={"square": {"num_queries": 1500}})
  assert report.robust_accuracy <= unmasked.robust_accuracy + 0.15


@pytest.mark.slow
def test_random_models_are_evaluated_by_majority(images, linear_weights):
  # Wrong on one draw in five, for every image: with a single draw, a fifth of the images would count as broken.
  def logits_fn(x, keys):
    flip = jax.vmap(jax.random.bernoulli, in_axes=(0, None))(keys, 0.2)
    return jnp.where(flip[:, None], -1.0, 1.0) * linear(linear_weights, x)

  labels = np.asarray(linear(linear_weights, images).argmax(axis=1))
  few = {"num_steps": 2, "eot_iter": 2}
  report = run(logits_fn, images, labels, epsilon=0.0, version="rand", overrides={"apgd-ce": few, "apgd-dlr": few})
  assert report.clean_accuracy > 0.95 and report.robust_accuracy > 0.9
