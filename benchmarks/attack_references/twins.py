"""Small networks, trained in seconds, that are the same in JAX and in PyTorch; and a timer of calls."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks import torch_models
from lrat_jax import attacks, models

_BATCH = 128


class Twin(NamedTuple):
  """One network in JAX and in PyTorch."""

  logits_fn: Callable[[jax.Array], jax.Array]
  network: torch.nn.Module


def trained(name: str, images: np.ndarray, labels: np.ndarray, num_steps: int, seed: int = 0) -> Twin:
  """Trains a network of `models.create` on images [n, h, w, c] of ten classes with `num_steps` steps of Adam."""
  model = models.create(name, 10)
  variables = jax.jit(model.init)(jax.random.key(seed), jnp.asarray(images[:1]))
  optimizer = optax.adam(3e-3)

  @jax.jit
  def step(variables, moments, images, labels):
    loss = lambda variables: jnp.mean(attacks.losses.cross_entropy(model.apply(variables, images), labels))
    update, moments = optimizer.update(jax.grad(loss)(variables), moments)
    return optax.apply_updates(variables, update), moments

  moments, generator = optimizer.init(variables), np.random.default_rng(seed)
  for _ in range(num_steps):
    rows = generator.integers(len(labels), size=_BATCH)
    variables, moments = step(variables, moments, images[rows], labels[rows])
  network = torch_models.classifier(model, variables).eval().requires_grad_(False)
  return Twin(functools.partial(model.apply, variables), network)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
  """(result of a call, its seconds)."""
  start = time.perf_counter()
  result = jax.block_until_ready(call())
  return result, time.perf_counter() - start
