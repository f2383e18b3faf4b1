"""A custom network: three convolutions with batch norm, a mean over the image, and a linear layer.

python -m lrat_jax.main --config=configs/lrat.py --config.model.name=examples.custom_model:make_network
"""

from typing import Any

from flax import linen as nn


class Network(nn.Module):
  """Normalised images [batch, h, w, c] -> logits [batch, num_classes]."""

  num_classes: int
  dtype: Any  # dtype of the computation: float32, or bfloat16 on accelerators
  axis_name: str | tuple[str, ...] | None  # mesh axes over which batch norm averages in training

  @nn.compact
  def __call__(self, images, train=False):
    x = images
    for features, stride in ((16, 1), (32, 2), (64, 2)):
      x = nn.Conv(features, (3, 3), (stride, stride), use_bias=False, dtype=self.dtype)(x)
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name, dtype=self.dtype)(x)
      x = nn.relu(x)
    return nn.Dense(self.num_classes, dtype=self.dtype)(x.mean(axis=(1, 2)))


def make_network(num_classes, *, dtype, axis_name):
  """The function that the configuration names. The network gets images normalised by config.model.mean and std."""
  return Network(num_classes, dtype, axis_name)
