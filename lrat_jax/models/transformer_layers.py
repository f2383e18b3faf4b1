"""The layers that ConvNeXt and vision transformers share: dense layers, layer norm, GELU, attention, stems.

Their numbers are those of PyTorch's layers, as timm puts them together: GELU by the error function, 1e-6 in layer norm.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.models.layers import Conv, activation

gelu = functools.partial(nn.gelu, approximate=False)

# A normal of 0.02, that timm cuts off at 100 standard deviations; biases of 0.
Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.normal(0.02))
BiasedConv = functools.partial(Conv, use_bias=True, kernel_init=nn.initializers.normal(0.02))

# As PyTorch's own layers begin: uniform, of a variance of 1 / (3 fan in).
torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# Over the last axis. The fast variance, E[x²] - E[x]², would lose digits where a mean is far from 0.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


class LayerScale(nn.Module):
  """A learned factor for each channel of a residual branch (Touvron et al., arXiv:2103.17239, eq. 5)."""

  initial: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.initializers.constant(self.initial), x.shape[-1:], jnp.float32)
    return x * scale.astype(self.dtype)


class Mlp(nn.Module):
  """Two dense layers with an activation between them: [..., channels] -> hidden -> [..., channels].

  `mean_sparse` puts a MeanSparse before the activation.
  """

  hidden: int
  dtype: Any = jnp.float32
  activation: str = "gelu"
  mean_sparse: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    hidden = activation(self.activation, self.mean_sparse)(Dense(self.hidden, dtype=self.dtype)(x))
    return Dense(x.shape[-1], dtype=self.dtype)(hidden)


def split_heads(x: Array, parts: int, num_heads: int) -> list[Array]:
  """[..., tokens, parts * channels] -> `parts` arrays [..., tokens, num_heads, channels / num_heads].

  The parts (queries, keys, values) lie one after the other, and in each of them the heads.
  """
  split = x.reshape(*x.shape[:-1], parts, num_heads, -1)
  return [split[..., part, :, :] for part in range(parts)]


class SelfAttention(nn.Module):
  """softmax(q kᵀ / sqrt(channels / num_heads) + bias) v for each head, and a dense layer after it
  (Vaswani et al., arXiv:1706.03762, eq. 1).

  One dense layer gives queries, keys and values. `bias`, of a shape that fits [batch, heads, tokens, tokens], is for
  relative positions and for masks.
  """

  num_heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, bias: Array | None = None) -> Array:
    channels = x.shape[-1]
    queries, keys, values = split_heads(Dense(3 * channels, dtype=self.dtype)(x), 3, self.num_heads)
    attended = jax.nn.dot_product_attention(queries, keys, values, bias, implementation="xla")
    return Dense(channels, dtype=self.dtype)(attended.reshape(x.shape))


class ConvStem(nn.Module):
  """3x3 convolutions, layer norm and the activation after each, in the place of a patch embedding (Singh et al.,
  arXiv:2303.01870, appendix A): [n, h, w, c] -> [n, h / stride, w / stride, last of `widths`].

  `features`, where it is not None, are those of a 1x1 convolution at the end. `mean_sparse` puts a MeanSparse before
  each activation.
  """

  widths: tuple[int, ...]
  strides: tuple[int, ...]
  features: int | None = None
  dtype: Any = jnp.float32
  activation: str = "gelu"
  mean_sparse: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    activate = activation(self.activation, self.mean_sparse)
    conv = functools.partial(BiasedConv, kernel_init=torch_init, dtype=self.dtype)
    for width, stride in zip(self.widths, self.strides, strict=True):
      x = activate(LayerNorm(dtype=self.dtype)(conv(width, (3, 3), (stride, stride), padding=1)(x)))
    return x if self.features is None else conv(self.features, (1, 1), padding=0)(x)
