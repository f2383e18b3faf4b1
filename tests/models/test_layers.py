"""The layers of the networks: a folded batch norm, and unsupported options of a convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lrat_jax.models import layers


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_a_folded_batch_norm_equals_the_layers_one_after_the_other(size, stride):
  x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
  layer = layers.ConvNorm(5, size=size, stride=stride)
  variables = layer.init(jax.random.key(1), x, train=False)
  spread = lambda path, leaf: leaf + jax.random.uniform(jax.random.key(len(str(path))), leaf.shape)
  variables = jax.tree_util.tree_map_with_path(spread, variables)
  parameters, stats = variables["params"], variables["batch_stats"]
  plain = lax.conv_general_dilated(
    x,
    parameters["Conv_0"]["kernel"],
    (stride, stride),
    [(size // 2, size // 2)] * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  norm = layers.BatchNorm(use_running_average=True)
  expected = norm.apply({"params": parameters["BatchNorm_0"], "batch_stats": stats["BatchNorm_0"]}, plain)
  np.testing.assert_allclose(layer.apply(variables, x, train=False), expected, atol=1e-5)


def test_options_that_are_not_there_are_refused():
  layer = layers.Conv(2, (3, 3), padding=1, kernel_dilation=2)
  with pytest.raises(ValueError, match="takes no dilation, feature groups or precision"):
    layer.init(jax.random.key(0), jnp.zeros((1, 5, 5, 1)))
