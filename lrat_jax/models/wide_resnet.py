"""WideResNet-depth-width for 32x32 images (Zagoruyko & Komodakis, arXiv:1605.07146), as TRADES defines it.

Also as DeepMind defines it (Gowal et al., arXiv:2010.03593): with SiLU, and convolutions of stride 2 padded as in
Haiku. With groups of any depths and widths it is a network of Huang et al. (arXiv:2110.03825); with squeeze and
excitation in addition it is one of Peng et al. (arXiv:2308.16258), such as RaWRN-70-16.
"""

import functools
import re
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.core.typing import AxisName
from lrat_jax.models.layers import FEATURES, BatchNorm, Conv, ConvNorm, SqueezeExcitation, activation, blocks, padding
from lrat_jax.models.mean_sparse import MeanSparse

# Instead of depth and width, a name may have any stem and groups: "ra_wide_resnet_96_30x216_31x432_10x864".
SPELLING = r"(|dm_|ra_|robust_)wide_resnet_(\d{1,3}_[1-9]\d{0,2}|[1-9]\d{0,3}(?:_[1-9]\d{0,2}x[1-9]\d{0,4}){3})"
NAMES = (
  "wide_resnet_DEPTH_WIDTH", "dm_wide_resnet_DEPTH_WIDTH", "ra_wide_resnet_70_16",
  "robust_wide_resnet_STEM_BLOCKSxCHANNELS_BLOCKSxCHANNELS_BLOCKSxCHANNELS",
)  # fmt: skip
_RA_70_16 = (96, ((30, 216), (31, 432), (10, 864)))


class PreActivationBlock(nn.Module):
  """Two 3x3 convolutions, each after batch norm and the activation, and a shortcut.

  If the shape changes, the shortcut is a convolution of the first activation's output or of the block's input.

  Attributes:
    same_padding: `same` of `layers.padding`.
    shortcut_size: kernel size of the shortcut's convolution.
    shortcut_of_input: whether the shortcut's convolution takes the block's input, before the first activation.
    squeeze: whether squeeze and excitation end the residual branch.
    mean_sparse: whether there is a MeanSparse before each activation and at the end of the block.
  """

  features: int
  stride: int
  dtype: Any
  axis_name: AxisName | None
  activation: str = "relu"
  same_padding: bool = False
  shortcut_size: int = 1
  shortcut_of_input: bool = False
  squeeze: bool = False
  mean_sparse: bool = False

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    norm = BatchNorm(use_running_average=not train, axis_name=self.axis_name, dtype=self.dtype)
    conv = functools.partial(Conv, self.features, dtype=self.dtype)
    pads = functools.partial(padding, same=self.same_padding)
    activate = activation(self.activation, self.mean_sparse)
    activated = activate(norm(x))
    layer = ConvNorm(self.features, 3, self.stride, self.dtype, self.axis_name, self.same_padding)
    y = conv((3, 3), padding=pads(3))(activate(layer(activated, train)))
    if self.squeeze:
      y = SqueezeExcitation(dtype=self.dtype)(y)
    if self.stride != 1 or x.shape[-1] != self.features:
      size, strides = (self.shortcut_size,) * 2, (self.stride,) * 2
      source = x if self.shortcut_of_input else activated
      x = conv(size, strides, padding=pads(self.shortcut_size, self.stride))(source)
    return MeanSparse()(x + y) if self.mean_sparse else x + y


class WideResNet(nn.Module):
  """Three groups of (depth - 4) / 6 blocks, with 16, 32 and 64 times `width` channels.

  Attributes:
    groups: (blocks, channels) of each group; if given, depth and width are ignored.
    stem: channels of the first convolution.
    remat: see `layers.blocks`.
    same_padding, squeeze, mean_sparse: of the blocks; MeanSparse is also before the last activation.
  """

  num_classes: int
  depth: int = 34
  width: int = 10
  dtype: Any = jnp.float32
  axis_name: AxisName | None = None
  activation: str = "relu"
  groups: tuple[tuple[int, int], ...] = ()
  stem: int = 16
  same_padding: bool = False
  squeeze: bool = False
  mean_sparse: bool = False
  remat: bool = False

  @property
  def sizes(self) -> tuple[tuple[int, int], ...]:
    """(blocks, channels) of each group."""
    return self.groups or tuple(((self.depth - 4) // 6, 16 * self.width * 2**group) for group in range(3))

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    options: dict[str, Any] = {
      "same_padding": self.same_padding,
      "squeeze": self.squeeze,
      "mean_sparse": self.mean_sparse,
    }
    x = Conv(self.stem, (3, 3), padding=1, dtype=self.dtype)(images)
    make = blocks(PreActivationBlock, self.remat)
    for group, (num_blocks, features) in enumerate(self.sizes):
      for block in range(num_blocks):
        stride = 2 if group > 0 and block == 0 else 1
        x = make(features, stride, self.dtype, self.axis_name, self.activation, **options)(x, train)
      self.sow(*FEATURES, x)
    x = BatchNorm(use_running_average=not train, axis_name=self.axis_name, dtype=self.dtype)(x)
    activated = activation(self.activation, self.mean_sparse)(x)
    return nn.Dense(self.num_classes, dtype=self.dtype)(jnp.mean(activated, axis=(1, 2)))


class DMWideResNet(WideResNet):
  """DeepMind's WideResNet."""

  activation: str = "silu"
  same_padding: bool = True


class RaWideResNet(DMWideResNet):
  """Peng et al.'s WideResNet; RaWRN-70-16 by default."""

  stem: int = _RA_70_16[0]
  groups: tuple[tuple[int, int], ...] = _RA_70_16[1]
  squeeze: bool = True


class RobustWideResNet(WideResNet):
  """Huang et al.'s WideResNet; WRN-34-R by default."""

  groups: tuple[tuple[int, int], ...] = ((5, 320), (5, 640), (5, 512))


_BY_PREFIX = {"": WideResNet, "dm_": DMWideResNet, "ra_": RaWideResNet, "robust_": RobustWideResNet}


def from_name(match: re.Match, **options: Any) -> nn.Module:
  """The network of a name that SPELLING matches. Raises ValueError if no network has that name."""
  name, prefix, sizes = match[0], match[1], match[2]
  family = _BY_PREFIX[prefix]
  if "x" in sizes and prefix:
    stem, *groups = sizes.split("_")
    pairs = (group.split("x") for group in groups)
    return family(stem=int(stem), groups=tuple((int(blocks), int(channels)) for blocks, channels in pairs), **options)
  if (prefix, sizes) == ("ra_", "70_16"):
    return family(**options)
  if "x" in sizes or prefix in ("ra_", "robust_"):
    raise ValueError(f"name={name!r} is not a WideResNet; choose from {list(NAMES)}.")
  depth, width = map(int, sizes.split("_"))
  if depth < 10 or (depth - 4) % 6:
    raise ValueError(f"name={name!r}: the depth of a WideResNet is 6 n + 4 with n >= 1, such as 28 or 34.")
  return family(depth=depth, width=width, **options)


def name_of(prefix: str, stem: int, groups: tuple[tuple[int, int], ...]) -> str:
  """The shortest name of the network with these sizes; `prefix` is "dm_", "ra_" or "robust_"."""
  blocks, width = groups[0][0], groups[0][1] // 16
  sizes = "_".join([str(stem), *(f"{blocks}x{channels}" for blocks, channels in groups)])
  if prefix == "dm_" and stem == 16 and groups == tuple((blocks, 16 * width * 2**group) for group in range(3)):
    sizes = f"{4 + 6 * blocks}_{width}"
  elif prefix == "ra_" and (stem, groups) == _RA_70_16:
    sizes = "70_16"
  return f"{prefix}wide_resnet_{sizes}"
