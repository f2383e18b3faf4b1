"""Adversarial weight perturbation (AWP, arXiv:2004.05884): the weights at which a step's gradient is computed."""

from typing import Any

import jax
import jax.numpy as jnp

Params = Any

# The constant of the authors' code against a division by 0.
_TINY = 1e-20


def perturbed(params: Params, gradients: Params, gamma: float) -> Params:
  """params + gamma |w| g / |g| for each kernel w with the loss's gradient g; vectors (biases, norms) are unchanged.

  The paper takes one SGD step up the loss with a proxy model and rescales it for each tensor; this is its closed form.

  Args:
    params, gradients: trees of the same shape.
    gamma: the length of the step relative to each kernel's norm; 0 or more.
  """

  def move(weights: jax.Array, gradient: jax.Array) -> jax.Array:
    if weights.ndim < 2:
      return weights
    return weights + gamma * jnp.linalg.norm(weights) / (jnp.linalg.norm(gradient) + _TINY) * gradient

  return jax.tree.map(move, params, gradients)
