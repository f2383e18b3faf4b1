"""Layers that ConvNeXt and vision transformers share: dense layers, layer norm, GELU, attention, stems.

Their constants are those of PyTorch's layers as used by timm: GELU with the error function, epsilon 1e-6 in layer norm.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lrat_jax.models.layers import Conv, activation

gelu = functools.partial(nn.gelu, approximate=False)

# Normal initialisation with standard deviation 0.02, which timm truncates at 100 standard deviations; biases are 0.
Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.normal(0.02))
BiasedConv = functools.partial(Conv, use_bias=True, kernel_init=nn.initializers.normal(0.02))

# The default initialisation of PyTorch's layers: uniform, with variance 1 / (3 fan_in).
torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# Over the last axis. The fast variance, E[x²] - E[x]², would lose digits if a mean is far from 0.
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

  On the last axis, the parts (queries, keys, values) follow one another, and so do the heads within each part.
  """
  split = x.reshape(*x.shape[:-1], parts, num_heads, -1)
  return [split[..., part, :, :] for part in range(parts)]


class SelfAttention(nn.Module):
  """softmax(q kᵀ / sqrt(channels / num_heads) + bias) v for each head, followed by a dense layer.

  This is eq. 1 of Vaswani et al. (arXiv:1706.03762) with a bias. One dense layer gives queries, keys and values.
  `bias`, of a shape that broadcasts to [batch, heads, tokens, tokens], is for relative positions and for masks.
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
  """3x3 convolutions, each followed by layer norm and the activation, instead of a patch embedding.

  As in Singh et al. (arXiv:2303.01870, appendix A): [n, h, w, c] -> [n, h / stride, w / stride, last of `widths`]. If
  `features` is not None, a 1x1 convolution to that number of channels follows. `mean_sparse` puts a MeanSparse before
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
