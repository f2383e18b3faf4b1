"""Layers of convolutional networks: convolution, batch norm, both combined, squeeze and excitation; activations."""

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.convolutions.conv2d import conv2d
from lrat_jax.core.typing import AxisName
from lrat_jax.models.mean_sparse import MeanSparse


def _for_flax(
  lhs, rhs, window_strides, padding, *, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision
):
  """`conv2d` with the signature that `nn.Conv` calls; the models here do not use the options that it lacks."""
  plain = (1,) * len(window_strides)
  if tuple(lhs_dilation) != plain or tuple(rhs_dilation) != plain or feature_group_count != 1 or precision is not None:
    raise ValueError("Conv of lrat_jax.models takes no dilation, feature groups or precision.")
  return conv2d(lhs, rhs, tuple(window_strides), tuple(padding))


# By their names in `models.create`. PyTorch's GELU is the exact one by default; "gelu_tanh" is `approximate="tanh"`.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "relu": nn.relu,
  "silu": nn.silu,
  "gelu": functools.partial(nn.gelu, approximate=False),
  "gelu_tanh": nn.gelu,
}


def activation(name: str, mean_sparse: bool = False) -> Callable[[Array], Array]:
  """The activation with this name; with `mean_sparse`, each call is preceded by a new MeanSparse.

  The MeanSparse is a submodule of the module whose compact method calls the activation.
  """
  return (lambda x: ACTIVATIONS[name](MeanSparse()(x))) if mean_sparse else ACTIVATIONS[name]


# Initialisation of He et al. 2015 by fan-out, as in the PyTorch definitions of these networks.
Conv = functools.partial(
  nn.Conv,
  use_bias=False,
  kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
  conv_general_dilated=_for_flax,
)

# PyTorch's batch norm in Flax: momentum 0.1 there is 0.9 here, epsilon is the same. `axis_name` may be several axes,
# though it is annotated as one.
BatchNorm: Callable[..., nn.BatchNorm] = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)

# Collection and name of the stages' outputs that a network sows for `networks.features`; otherwise nothing is kept.
FEATURES = ("intermediates", "features")


def stage_ends(depth: int) -> frozenset[int]:
  """The numbers of blocks after which one of 4 stages ends, for `depth` equal blocks; each number if `depth` < 4."""
  return frozenset(max(depth * stage // 4, 1) for stage in range(1, 5))


def padding(size: int, stride: int = 1, same: bool = False) -> tuple[tuple[int, int], tuple[int, int]]:
  """The padding (before, after) for height and width so that only a square convolution's stride reduces the size.

  PyTorch pads all sides equally. With `same` it is the "SAME" of TensorFlow and Haiku for images with even sides: 3x3
  convolutions of stride 2 have no padding before the first row and column.
  """
  total = max(size - stride, 0) if same else 2 * (size // 2)
  return ((total // 2, total - total // 2),) * 2


def blocks(block: type[nn.Module], remat: bool) -> Callable[..., nn.Module]:
  """A function that makes a network's blocks, numbered in their names as Flax does: "BasicBlock_0".

  With `remat`, only a block's input is stored for the backward pass, which recomputes the activations inside the block.
  The parameters and their names are the same.
  """
  numbers, name = itertools.count(), block.__name__
  if remat:
    takes_train = "train" in inspect.signature(block.__call__).parameters  # argument 2, after the block and its input
    block = nn.remat(block, static_argnums=(2,) if takes_train else ())
  return lambda *args, **options: block(*args, **options, name=f"{name}_{next(numbers)}")


class ConvNorm(nn.Module):
  """A square convolution without bias, padded as in `padding`, followed by batch norm.

  With running averages (`train` False), batch norm is affine per channel and is folded into the kernel and a bias:
  exact up to rounding, and it saves one pass over the images on every device. The folded kernel does not depend on the
  images, so XLA computes it once, before an attack's loop.
  """

  features: int
  size: int = 3
  stride: int = 1
  dtype: Any = jnp.float32
  axis_name: AxisName | None = None
  same_padding: bool = False

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    strides, pads = (self.stride, self.stride), padding(self.size, self.stride, self.same_padding)
    conv = Conv(self.features, (self.size, self.size), strides, padding=pads, dtype=self.dtype)
    norm = BatchNorm(use_running_average=not train, axis_name=self.axis_name, dtype=self.dtype)
    if train or self.is_initializing():
      return norm(conv(x))
    weights, running = norm.variables["params"], norm.variables["batch_stats"]
    scale = weights["scale"] * jax.lax.rsqrt(running["var"] + norm.epsilon)
    kernel = conv.variables["params"]["kernel"] * scale
    bias = weights["bias"] - running["mean"] * scale
    return conv2d(x.astype(self.dtype), kernel.astype(self.dtype), strides, pads) + bias.astype(self.dtype)


class SqueezeExcitation(nn.Module):
  """Scales channels by factors that a small network computes from all channels' means (Hu et al., arXiv:1709.01507).

  The network has two dense layers, with a quarter of the channels and ReLU between them.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    means = jnp.mean(x, axis=(1, 2), keepdims=True)
    squeezed = nn.relu(nn.Dense(round(x.shape[-1] / 4), dtype=self.dtype)(means))
    return x * nn.sigmoid(nn.Dense(x.shape[-1], dtype=self.dtype)(squeezed))
