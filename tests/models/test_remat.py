"""Blocks that are recomputed in the backward pass: the same network, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import models
from lrat_jax.config import validate
from lrat_jax.core.errors import ConfigError
from tests.helpers import make_config

_OTHERS = [
  "resnet18_2",
  "resnet50_2",
  "dm_wide_resnet_10_1_mean_sparse",
  "wong_preact_resnet18_2",
  "ra_wide_resnet_16_1x16_1x32_1x64",
]
_OTHERS += ["convnext_1-1_16-32_patch4", "vit_2_32_2_4", "swin_2_32_patch1_window4", "xcit_1_16_2_p4"]


def _both(name):
  return (models.create(name, 4, remat=remat) for remat in (False, True))


def _gradients(model, variables, images, train):
  """Gradients of sum(sin(logits)) in parameters and images, and (logits, updated statistics), in either mode."""

  def loss(params, images):
    of = {**variables, "params": params}
    if not train:
      logits, updated = model.apply(of, images), {}
    else:
      logits, updated = model.apply(of, images, train=True, mutable=["batch_stats"])
    return jnp.sum(jnp.sin(logits)), (logits, updated)

  return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], images)


def _assert_equal_networks(name, shape):
  plain, remat = _both(name)
  images = jax.random.uniform(jax.random.key(1), (3, *shape))
  variables, others = (jax.jit(model.init)(jax.random.key(0), images) for model in (plain, remat))
  jax.tree.map(np.testing.assert_array_equal, variables, others)
  for train in (False, True):
    ours, theirs = (_gradients(model, variables, images, train) for model in (remat, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_a_network_that_computes_its_blocks_again_is_the_same():
  _assert_equal_networks("wide_resnet_10_1", (8, 8, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", _OTHERS)
def test_other_networks_too(name):
  _assert_equal_networks(name, (16, 16, 3))


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_the_backward_pass_keeps_the_inputs_of_blocks_alone(train):
  """Counts bytes kept for the backward pass, in the trace: XLA's CPU compiler would merge both computations again."""
  images, kept = jnp.zeros((32, 16, 16, 3)), []
  for model in _both("wide_resnet_28_1"):
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    logits = lambda of, images, model=model: model.apply(of, images, train=train, mutable=["batch_stats"])[0]
    backward = jax.eval_shape(lambda of, images, logits=logits: jax.vjp(logits, of, images)[1], variables, images)
    kept.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward)))
  inputs = 32 * 4 * (5 * 16 * 16 * 16 + 4 * 8 * 8 * 32 + 3 * 4 * 4 * 64)  # bytes of the inputs of all 12 blocks
  assert kept[1] < 2 * inputs < kept[0] / 3


@pytest.mark.parametrize("name", ["cnn_2", "tests.user_functions:linear"])
def test_networks_without_blocks_are_refused(name):
  with pytest.raises(ConfigError, match=rf"config.model.remat=True: '{name}' has no blocks"):
    validate.check(make_config(model__name=name, model__remat=True))
