"""Pre-activation ResNets for 32x32 images (He et al., arXiv:1603.05027).

As Rice et al. (arXiv:2002.11569), Wong et al. (arXiv:2001.03994) and DeepMind (Gowal et al., arXiv:2010.03593) define
them: they differ in where a shortcut begins, in its convolution, in padding, and in what ends the stages.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.core.typing import AxisName
from lrat_jax.models.layers import FEATURES, BatchNorm, Conv, activation, blocks
from lrat_jax.models.wide_resnet import PreActivationBlock


class PreActResNet(nn.Module):
  """Stages of width, 2, 4 and 8 times it; the stem keeps the resolution, batch norm and activation end the stages.

  Attributes:
    same_padding, shortcut_size, shortcut_of_input, mean_sparse: of the blocks; MeanSparse stands before the last
      activation too.
    remat: of `layers.blocks`.
    final_norm: whether batch norm and activation end the stages; if not, a sum does.
  """

  num_classes: int
  blocks: tuple[int, ...] = (2, 2, 2, 2)
  width: int = 64
  dtype: Any = jnp.float32
  axis_name: AxisName | None = None
  activation: str = "relu"
  same_padding: bool = False
  shortcut_size: int = 1
  shortcut_of_input: bool = False
  final_norm: bool = True
  mean_sparse: bool = False
  remat: bool = False

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    x = Conv(self.width, (3, 3), padding=1, dtype=self.dtype)(images)
    options: dict[str, Any] = {
      "same_padding": self.same_padding,
      "shortcut_size": self.shortcut_size,
      "shortcut_of_input": self.shortcut_of_input,
      "mean_sparse": self.mean_sparse,
    }
    make = blocks(PreActivationBlock, self.remat)
    for stage, num_blocks in enumerate(self.blocks):
      for block in range(num_blocks):
        stride = 2 if stage > 0 and block == 0 else 1
        features = self.width * 2**stage
        layer = make(features, stride, self.dtype, self.axis_name, self.activation, **options)
        x = layer(x, train)
      self.sow(*FEATURES, x)
    if self.final_norm:
      norm = BatchNorm(use_running_average=not train, axis_name=self.axis_name, dtype=self.dtype)
      x = activation(self.activation, self.mean_sparse)(norm(x))
    return nn.Dense(self.num_classes, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))


class WongPreActResNet(PreActResNet):
  """Wong et al.'s: shortcuts of a block's input, and nothing after the last sum."""

  shortcut_of_input: bool = True
  final_norm: bool = False


class DMPreActResNet(PreActResNet):
  """DeepMind's: SiLU, Haiku's padding, and shortcuts by 3x3 convolutions of a block's input."""

  activation: str = "silu"
  same_padding: bool = True
  shortcut_size: int = 3
  shortcut_of_input: bool = True
