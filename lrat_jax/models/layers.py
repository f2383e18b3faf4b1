"""The layers of the networks: a convolution, batch norm, and both as one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.convolutions.conv2d import conv2d


def _for_flax(
  lhs, rhs, window_strides, padding, *, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision
):
  """`conv2d` in the signature that `nn.Conv` calls; the models here use none of the options it leaves out."""
  plain = (1,) * len(window_strides)
  if tuple(lhs_dilation) != plain or tuple(rhs_dilation) != plain or feature_group_count != 1 or precision is not None:
    raise ValueError("Conv of lrat_jax.models takes no dilation, feature groups or precision.")
  return conv2d(lhs, rhs, tuple(window_strides), tuple(padding))


# He et al. 2015, by the outputs' fan, as the PyTorch definitions of these networks have it.
Conv = functools.partial(
  nn.Conv,
  use_bias=False,
  kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
  conv_general_dilated=_for_flax,
)

# PyTorch's batch norm in the terms of Flax: momentum 0.1 there is 0.9 here, epsilon is the same.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)

# What a network sows its stages' outputs as, for who asks for them (`networks.features`); else nothing is kept.
FEATURES = ("intermediates", "features")


class ConvNorm(nn.Module):
  """A square convolution without bias, padded to keep the size that its stride leaves, and batch norm after it.

  With running averages (`train` False) batch norm is affine per channel and goes into the kernel and a bias: exact up
  to rounding, and one pass over the images less on every device. The folded kernel depends on no image, so XLA
  computes it once, before an attack's loop.
  """

  features: int
  size: int = 3
  stride: int = 1
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    reach = self.size // 2
    strides, padding = (self.stride, self.stride), ((reach, reach), (reach, reach))
    conv = Conv(self.features, (self.size, self.size), strides, padding=padding, dtype=self.dtype)
    norm = BatchNorm(use_running_average=not train, axis_name=self.axis_name, dtype=self.dtype)
    if train or self.is_initializing():
      return norm(conv(x))
    weights, running = norm.variables["params"], norm.variables["batch_stats"]
    scale = weights["scale"] * jax.lax.rsqrt(running["var"] + norm.epsilon)
    kernel = conv.variables["params"]["kernel"] * scale
    bias = weights["bias"] - running["mean"] * scale
    return conv2d(x.astype(self.dtype), kernel.astype(self.dtype), strides, padding) + bias.astype(self.dtype)
