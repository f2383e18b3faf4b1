"""The layers of convolutional networks: convolution, batch norm, both as one, squeeze and excitation; activations."""

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
  """`conv2d` in the signature that `nn.Conv` calls; the models here use none of the options it leaves out."""
  plain = (1,) * len(window_strides)
  if tuple(lhs_dilation) != plain or tuple(rhs_dilation) != plain or feature_group_count != 1 or precision is not None:
    raise ValueError("Conv of lrat_jax.models takes no dilation, feature groups or precision.")
  return conv2d(lhs, rhs, tuple(window_strides), tuple(padding))


# By the names of `models.create`. PyTorch's GELU is the exact one; that by tanh is its `approximate="tanh"`.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "relu": nn.relu,
  "silu": nn.silu,
  "gelu": functools.partial(nn.gelu, approximate=False),
  "gelu_tanh": nn.gelu,
}


def activation(name: str, mean_sparse: bool = False) -> Callable[[Array], Array]:
  """An activation by its name, behind a MeanSparse of its own each time that it is called if `mean_sparse` says so.

  That is a submodule of the module whose compact method calls it.
  """
  return (lambda x: ACTIVATIONS[name](MeanSparse()(x))) if mean_sparse else ACTIVATIONS[name]


# He et al. 2015, by the outputs' fan, as the PyTorch definitions of these networks have it.
Conv = functools.partial(
  nn.Conv,
  use_bias=False,
  kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
  conv_general_dilated=_for_flax,
)

# PyTorch's batch norm in the terms of Flax: momentum 0.1 there is 0.9 here, epsilon is the same. Its `axis_name` may be
# several, though it is annotated as one.
BatchNorm: Callable[..., nn.BatchNorm] = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)

# What a network sows its stages' outputs as, for who asks for them (`networks.features`); else nothing is kept.
FEATURES = ("intermediates", "features")


def stage_ends(depth: int) -> frozenset[int]:
  """After how many of `depth` blocks that are all alike a stage ends, of four; of each block where there are fewer."""
  return frozenset(max(depth * stage // 4, 1) for stage in range(1, 5))


def padding(size: int, stride: int = 1, same: bool = False) -> tuple[tuple[int, int], tuple[int, int]]:
  """How a square convolution is padded to keep the size that its stride leaves, (before, after) for height and width.

  PyTorch pads all sides alike. With `same` it is TensorFlow's and Haiku's "SAME" of images with even sides, whose 3x3
  convolutions of stride 2 meet nothing before the first row and column.
  """
  total = max(size - stride, 0) if same else 2 * (size // 2)
  return ((total // 2, total - total // 2),) * 2


def blocks(block: type[nn.Module], remat: bool) -> Callable[..., nn.Module]:
  """Makes a network's blocks, named as Flax names them in turn: "BasicBlock_0".

  With `remat` the backward pass keeps a block's input alone, and computes what is inside once more. The parameters and
  their names are the same.
  """
  numbers, name = itertools.count(), block.__name__
  if remat:
    takes_train = "train" in inspect.signature(block.__call__).parameters  # after the block itself and its input
    block = nn.remat(block, static_argnums=(2,) if takes_train else ())
  return lambda *args, **options: block(*args, **options, name=f"{name}_{next(numbers)}")


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
  """Channels scaled by what a small network says of all channels' means (Hu et al., arXiv:1709.01507).

  A quarter of the channels and ReLU between its two layers.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    means = jnp.mean(x, axis=(1, 2), keepdims=True)
    squeezed = nn.relu(nn.Dense(round(x.shape[-1] / 4), dtype=self.dtype)(means))
    return x * nn.sigmoid(nn.Dense(x.shape[-1], dtype=self.dtype)(squeezed))
