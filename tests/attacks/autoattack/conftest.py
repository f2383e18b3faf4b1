"""The images, model and labels of AutoAttack's tests, and one report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from tests.attacks.autoattack.case import linear, run


@pytest.fixture(scope="module")
def images():
  """float32 [40, 8, 8, 1] in [0, 1]."""
  return np.random.default_rng(1).uniform(size=(40, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def model(linear_weights):
  return Partial(linear, jnp.asarray(linear_weights))


@pytest.fixture(scope="module")
def answers(model, images):
  """The model's predictions as labels, except for four images with a wrong label."""
  labels = np.array(model(images).argmax(axis=1))
  labels[::10] = (labels[::10] + 1) % 5
  return labels


@pytest.fixture(scope="module")
def report(model, images, answers):
  return run(model, images, answers, devices=jax.devices()[:1])
