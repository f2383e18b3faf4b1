"""ResNets (He et al., arXiv:1512.03385): those for 32x32 images in most papers of this field, and torchvision's."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.core.typing import AxisName
from lrat_jax.models.layers import FEATURES, ConvNorm, activation, blocks

# Number of blocks in each stage, by depth (table 1 of the paper); from depth 50 on they are bottlenecks.
BLOCKS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut, activation after the addition."""

  features: int
  stride: int
  dtype: Any
  axis_name: AxisName | None
  activation: str = "relu"
  mean_sparse: bool = False

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    activate = activation(self.activation, self.mean_sparse)
    layer = functools.partial(ConvNorm, self.features, dtype=self.dtype, axis_name=self.axis_name)
    y = activate(layer(stride=self.stride)(x, train))
    y = layer()(y, train)
    if self.stride != 1 or x.shape[-1] != self.features:
      x = layer(size=1, stride=self.stride)(x, train)
    return activate(x + y)


class Bottleneck(nn.Module):
  """Convolutions 1x1, 3x3 and 1x1 with `inner` channels between them, and a shortcut; the second has the stride."""

  features: int
  inner: int
  stride: int
  dtype: Any
  axis_name: AxisName | None
  activation: str = "relu"
  mean_sparse: bool = False

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    activate = activation(self.activation, self.mean_sparse)
    layer = functools.partial(ConvNorm, dtype=self.dtype, axis_name=self.axis_name)
    y = activate(layer(self.inner, 1)(x, train))
    y = activate(layer(self.inner, 3, self.stride)(y, train))
    y = layer(self.features, 1)(y, train)
    if self.stride != 1 or x.shape[-1] != self.features:
      x = layer(self.features, 1, self.stride)(x, train)
    return activate(x + y)


class ResNet(nn.Module):
  """Stages with 1, 2, 4 and 8 times `width` channels, and four times as many at the output of bottlenecks.

  Attributes:
    bottleneck: whether blocks are bottlenecks, with `widening` times the stage's channels inside.
    large_stem: whether the stem is a 7x7 convolution of stride 2 and max pooling, for images of 224x224. Otherwise it
      is a 3x3 convolution at full resolution.
    mean_sparse: whether a MeanSparse is placed before each activation.
    remat: see `layers.blocks`.
  """

  num_classes: int
  blocks: tuple[int, ...] = (2, 2, 2, 2)
  width: int = 64
  dtype: Any = jnp.float32
  axis_name: AxisName | None = None
  activation: str = "relu"
  bottleneck: bool = False
  widening: int = 1
  large_stem: bool = False
  mean_sparse: bool = False
  remat: bool = False

  def _sizes(self, stage: int) -> tuple[int, ...]:
    """The channels of a block, and those inside a bottleneck."""
    width = self.width * 2**stage
    return (4 * width, self.widening * width) if self.bottleneck else (width,)

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    size, stride = (7, 2) if self.large_stem else (3, 1)
    x = ConvNorm(self.width, size, stride, self.dtype, self.axis_name)(images, train)
    x = activation(self.activation, self.mean_sparse)(x)
    if self.large_stem:
      x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    make = blocks(Bottleneck if self.bottleneck else BasicBlock, self.remat)
    options = (self.dtype, self.axis_name, self.activation, self.mean_sparse)
    for stage, num_blocks in enumerate(self.blocks):
      for block in range(num_blocks):
        stride = 2 if stage > 0 and block == 0 else 1
        x = make(*self._sizes(stage), stride, *options)(x, train)
      self.sow(*FEATURES, x)
    return nn.Dense(self.num_classes, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))


class TorchvisionResNet(ResNet):
  """torchvision's ResNet, for ImageNet."""

  large_stem: bool = True
