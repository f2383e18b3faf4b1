"""Pre-activation ResNet-18 for 32x32 images (He et al., arXiv:1603.05027), as Rice et al. define it."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.models.layers import FEATURES, BatchNorm, Conv
from lrat_jax.models.wide_resnet import PreActivationBlock


class PreActResNet(nn.Module):
  """Stages of width, 2, 4 and 8 times it; the stem keeps the resolution, and batch norm and ReLU end the stages."""

  num_classes: int
  blocks: tuple[int, ...] = (2, 2, 2, 2)
  width: int = 64
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    x = Conv(self.width, (3, 3), padding=1, dtype=self.dtype)(images)
    for stage, num_blocks in enumerate(self.blocks):
      for block in range(num_blocks):
        stride = 2 if stage > 0 and block == 0 else 1
        x = PreActivationBlock(self.width * 2**stage, stride, self.dtype, self.axis_name)(x, train)
      self.sow(*FEATURES, x)
    norm = BatchNorm(use_running_average=not train, axis_name=self.axis_name, dtype=self.dtype)
    return nn.Dense(self.num_classes, dtype=self.dtype)(jnp.mean(nn.relu(norm(x)), axis=(1, 2)))
