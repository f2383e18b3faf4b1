"""Adversarial weight perturbation (AWP, arXiv:2004.05884): where in weight space a step's gradient is taken."""

from typing import Any

import jax
import jax.numpy as jnp

Params = Any

# The peers' own constant against a division by 0.
_TINY = 1e-20


def perturbed(params: Params, gradients: Params, gamma: float) -> Params:
  """params + gamma |w| g / |g| for each kernel w with the loss's gradient g; vectors (biases, norms) stay as they are.

  The paper's proxy takes one SGD step up the loss and rescales it for each tensor, which this is in closed form.

  Args:
    params, gradients: trees of the same shape.
    gamma: the length of the step relative to each kernel's own; 0 or more.
  """

  def move(weights: jax.Array, gradient: jax.Array) -> jax.Array:
    if weights.ndim < 2:
      return weights
    return weights + gamma * jnp.linalg.norm(weights) / (jnp.linalg.norm(gradient) + _TINY) * gradient

  return jax.tree.map(move, params, gradients)
