"""Pre-activation ResNets for 32x32 images (He et al., arXiv:1603.05027).

As defined by Rice et al. (arXiv:2002.11569), Wong et al. (arXiv:2001.03994) and DeepMind (Gowal et al.,
arXiv:2010.03593). They differ in the input of a shortcut, its convolution, the padding, and the layers after the last
stage.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.core.typing import AxisName
from lrat_jax.models.layers import FEATURES, BatchNorm, Conv, activation, blocks
from lrat_jax.models.wide_resnet import PreActivationBlock


class PreActResNet(nn.Module):
  """Stages with 1, 2, 4 and 8 times `width` channels, then batch norm and activation; the stem keeps the resolution.

  Attributes:
    same_padding, shortcut_size, shortcut_of_input, mean_sparse: of the blocks; MeanSparse is also before the last
      activation.
    remat: see `layers.blocks`.
    final_norm: whether batch norm and activation follow the last stage; if not, it ends with a block's sum.
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
  """Wong et al.'s network: shortcuts start at a block's input, and nothing follows the last sum."""

  shortcut_of_input: bool = True
  final_norm: bool = False


class DMPreActResNet(PreActResNet):
  """DeepMind's network: SiLU, Haiku's padding, and shortcuts with 3x3 convolutions of a block's input."""

  activation: str = "silu"
  same_padding: bool = True
  shortcut_size: int = 3
  shortcut_of_input: bool = True
