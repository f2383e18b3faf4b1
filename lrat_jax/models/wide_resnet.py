"""WideResNet-depth-width for 32x32 images (Zagoruyko & Komodakis, arXiv:1605.07146), as TRADES defines it."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.models.layers import FEATURES, BatchNorm, Conv, ConvNorm


class PreActivationBlock(nn.Module):
  """Batch norm and ReLU before each of two 3x3 convolutions; the shortcut is taken after the first activation
  where the shape changes, before it where it does not."""

  features: int
  stride: int
  dtype: Any
  axis_name: str | None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    norm = BatchNorm(use_running_average=not train, axis_name=self.axis_name, dtype=self.dtype)
    conv = functools.partial(Conv, dtype=self.dtype)
    activated = nn.relu(norm(x))
    layer = ConvNorm(self.features, stride=self.stride, dtype=self.dtype, axis_name=self.axis_name)
    y = conv(self.features, (3, 3), padding=1)(nn.relu(layer(activated, train)))
    if x.shape[-1] != self.features:
      x = conv(self.features, (1, 1), (self.stride, self.stride), padding=0)(activated)
    return x + y


class WideResNet(nn.Module):
  """Three groups of (depth - 4) / 6 blocks, with 16, 32 and 64 times `width` channels."""

  num_classes: int
  depth: int = 34
  width: int = 10
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    x = Conv(16, (3, 3), padding=1, dtype=self.dtype)(images)
    for group in range(3):
      for block in range((self.depth - 4) // 6):
        stride = 2 if group > 0 and block == 0 else 1
        x = PreActivationBlock(16 * self.width * 2**group, stride, self.dtype, self.axis_name)(x, train)
      self.sow(*FEATURES, x)
    norm = BatchNorm(use_running_average=not train, axis_name=self.axis_name, dtype=self.dtype)
    return nn.Dense(self.num_classes, dtype=self.dtype)(jnp.mean(nn.relu(norm(x)), axis=(1, 2)))
