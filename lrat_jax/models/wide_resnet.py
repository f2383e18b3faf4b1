"""WideResNet-depth-width for 32x32 images (Zagoruyko & Komodakis, arXiv:1605.07146), as TRADES defines it.

And as DeepMind does (Gowal et al., arXiv:2010.03593): with SiLU, and convolutions of stride 2 padded as in Haiku.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.models.layers import ACTIVATIONS, BatchNorm, Conv, ConvNorm, padding


class PreActivationBlock(nn.Module):
  """Batch norm and the activation before each of two 3x3 convolutions; the shortcut is a convolution where the shape
  changes, of the first activation or of the input itself.

  Attributes:
    same_padding: that of `layers.padding`.
    shortcut_size: of the shortcut's convolution.
    shortcut_of_input: whether that takes the block's input, before the first activation.
  """

  features: int
  stride: int
  dtype: Any
  axis_name: str | None
  activation: str = "relu"
  same_padding: bool = False
  shortcut_size: int = 1
  shortcut_of_input: bool = False

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    norm = BatchNorm(use_running_average=not train, axis_name=self.axis_name, dtype=self.dtype)
    conv = functools.partial(Conv, self.features, dtype=self.dtype)
    pads = functools.partial(padding, same=self.same_padding)
    activate = ACTIVATIONS[self.activation]
    activated = activate(norm(x))
    layer = ConvNorm(self.features, 3, self.stride, self.dtype, self.axis_name, self.same_padding)
    y = conv((3, 3), padding=pads(3))(activate(layer(activated, train)))
    if self.stride != 1 or x.shape[-1] != self.features:
      size, strides = (self.shortcut_size,) * 2, (self.stride,) * 2
      source = x if self.shortcut_of_input else activated
      x = conv(size, strides, padding=pads(self.shortcut_size, self.stride))(source)
    return x + y


class WideResNet(nn.Module):
  """Three groups of (depth - 4) / 6 blocks, with 16, 32 and 64 times `width` channels."""

  num_classes: int
  depth: int = 34
  width: int = 10
  dtype: Any = jnp.float32
  axis_name: str | None = None
  activation: str = "relu"
  same_padding: bool = False

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    x = Conv(16, (3, 3), padding=1, dtype=self.dtype)(images)
    for group in range(3):
      for block in range((self.depth - 4) // 6):
        stride = 2 if group > 0 and block == 0 else 1
        features = 16 * self.width * 2**group
        layer = PreActivationBlock(features, stride, self.dtype, self.axis_name, self.activation, self.same_padding)
        x = layer(x, train)
    norm = BatchNorm(use_running_average=not train, axis_name=self.axis_name, dtype=self.dtype)
    activated = ACTIVATIONS[self.activation](norm(x))
    return nn.Dense(self.num_classes, dtype=self.dtype)(jnp.mean(activated, axis=(1, 2)))


class DMWideResNet(WideResNet):
  """DeepMind's."""

  activation: str = "silu"
  same_padding: bool = True
