"""The small network of the evaluation's tests, and its results."""

import jax
import pytest

from lrat_jax import models
from tests.evaluation.suite_case import SPLIT, run_suite


@pytest.fixture(scope="module")
def model():
  return models.create("cnn_4", 4)


@pytest.fixture(scope="module")
def variables(model):
  return jax.jit(model.init)(jax.random.key(0), SPLIT.images[:1])


@pytest.fixture(scope="module")
def results(model, variables):
  """The suite's results on one device in batches of 8."""
  return run_suite(model, variables)
