"""A small convolutional network for small images: four 3x3 convolutions and a hidden dense layer, no batch norm."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.core.typing import AxisName
from lrat_jax.models.layers import ACTIVATIONS, FEATURES, Conv


class CNN(nn.Module):
  """Convolutions width, width (stride 2), 2 width, 2 width (stride 2), then 4 width dense units.

  With width 32 this is the 32-32/2-64-64/2-128 network with which this project's CPU figures were measured.
  """

  num_classes: int
  width: int = 32
  dtype: Any = jnp.float32
  axis_name: AxisName | None = None  # accepted by every model; unused, as nothing is averaged over the batch here
  activation: str = "relu"

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Array:
    # Without batch norm, initialisation by fan-in is needed to keep the scale of the signal from layer to layer.
    conv = functools.partial(Conv, use_bias=True, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)
    activate = ACTIVATIONS[self.activation]
    x = images
    for features, stride in ((1, 1), (1, 2), (2, 1), (2, 2)):
      x = activate(conv(features * self.width, (3, 3), (stride, stride), padding=1)(x))
      self.sow(*FEATURES, x)
    x = x.reshape(x.shape[0], -1)
    x = activate(nn.Dense(4 * self.width, dtype=self.dtype)(x))
    return nn.Dense(self.num_classes, dtype=self.dtype)(x)
