"""MeanSparse: values near the mean of their channel become it (Amini et al., arXiv:2406.05927)."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array


class MeanSparse(nn.Module):
  """What lies within `threshold` standard deviations of its channel's mean becomes that mean; there the gradient is 0.

  It stands before activations (section 3.3 of the paper), and where the published networks have it besides.
  Mean, variance and threshold are those of a trained network that was made sparse; nothing here moves them. They begin
  at 0, which changes no value.
  """

  @nn.compact
  def __call__(self, x: Array) -> Array:
    mean, variance = (self.variable("batch_stats", name, jnp.zeros, x.shape[-1:]).value for name in ("mean", "var"))
    threshold = self.variable("batch_stats", "threshold", jnp.zeros, ()).value
    reach = (threshold * jnp.sqrt(variance)).astype(x.dtype)
    mean = mean.astype(x.dtype)
    return jnp.where(jnp.abs(x - mean) < reach, mean, x)
