"""The convolution's own gradients equal those of the plain layer, whatever its stride, padding and size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from lrat_jax import sharding
from lrat_jax.models import conv


def _plain(x, kernel, stride, padding):
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize(("kernel_size", "padding"), [(3, 1), (1, 0), (3, 0), (5, 2)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_values_and_gradients_equal_the_plain_layers(size, kernel_size, padding, stride):
  x = jax.random.normal(jax.random.key(0), (2, size, size + 1, 3))
  kernel = jax.random.normal(jax.random.key(1), (kernel_size, kernel_size, 3, 4))
  ours = lambda x, k: conv.conv2d(x, k, (stride, stride), ((padding, padding),) * 2)
  out, pull = jax.vjp(ours, x, kernel)
  expected, pull_expected = jax.vjp(lambda x, k: _plain(x, k, stride, padding), x, kernel)
  np.testing.assert_allclose(out, expected, atol=1e-4)
  cotangent = jax.random.normal(jax.random.key(2), out.shape)
  for gradient, expected_gradient in zip(pull(cotangent), pull_expected(cotangent), strict=True):
    np.testing.assert_allclose(gradient, expected_gradient, atol=2e-4)


def test_the_kernels_gradient_is_summed_over_devices():
  x, kernel = jax.random.normal(jax.random.key(0), (4, 5, 5, 1)), jnp.ones((3, 3, 1, 2))
  loss = lambda k, x: jnp.sum(conv.conv2d(x, k, (1, 1), ((1, 1), (1, 1))) ** 2)
  per_device = jax.shard_map(
    lambda k, x: jax.grad(loss)(k, x), mesh=sharding.make_mesh(2), in_specs=(P(), P(sharding.AXIS)), out_specs=P()
  )
  np.testing.assert_allclose(jax.jit(per_device)(kernel, x), jax.grad(loss)(kernel, x), rtol=1e-4)


def test_options_that_are_not_there_are_refused():
  layer = conv.Conv(2, (3, 3), padding=1, kernel_dilation=2)
  with pytest.raises(ValueError, match="takes no dilation, feature groups or precision"):
    layer.init(jax.random.key(0), jnp.zeros((1, 5, 5, 1)))
