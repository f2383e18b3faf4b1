"""ResNet-18 for 32x32 images, the network of most tables in this field (He et al., arXiv:1512.03385)."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.models.layers import FEATURES, ConvNorm


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut, activation after the addition."""

  features: int
  stride: int
  dtype: Any
  axis_name: str | None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    layer = functools.partial(ConvNorm, self.features, dtype=self.dtype, axis_name=self.axis_name)
    y = nn.relu(layer(stride=self.stride)(x, train))
    y = layer()(y, train)
    if self.stride != 1 or x.shape[-1] != self.features:
      x = layer(size=1, stride=self.stride)(x, train)
    return nn.relu(x + y)


class ResNet(nn.Module):
  """Stages of width, 2, 4 and 8 times it; the stem keeps the resolution (3x3, stride 1, no pooling)."""

  num_classes: int
  blocks: tuple[int, ...] = (2, 2, 2, 2)
  width: int = 64
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    x = nn.relu(ConvNorm(self.width, dtype=self.dtype, axis_name=self.axis_name)(images, train))
    for stage, num_blocks in enumerate(self.blocks):
      for block in range(num_blocks):
        stride = 2 if stage > 0 and block == 0 else 1
        x = BasicBlock(self.width * 2**stage, stride, self.dtype, self.axis_name)(x, train)
      self.sow(*FEATURES, x)
    return nn.Dense(self.num_classes, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))
