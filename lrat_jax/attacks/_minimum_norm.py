"""Shared parts of minimum-norm attacks: the nearest adversarial so far, and the search over a constant."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from lrat_jax.attacks import losses, threat_model
from lrat_jax.attacks._entry import AttackResult, finished
from lrat_jax.attacks.threat_model import per_image
from lrat_jax.core.typing import LogitsFn

# The factor on a constant that was too small, until a constant is large enough.
_GROWTH = 10.0


class Nearest(NamedTuple):
  """The nearest adversarial so far: [batch, ...] arrays."""

  images: Array  # the clean image until an adversarial is found
  distance: Array  # inf before the first adversarial; 0 if the clean image is one
  survived: Array  # int32: number of iterates that the model gets right
  broken: Array  # int32: number of gradients with a NaN or infinite entry


def begin(logits_fn: LogitsFn, images: Array, labels: Array, targets: Array | None = None) -> Nearest:
  """The clean images, at distance 0 if the model is wrong on them (or predicts the target), else at inf."""
  done = losses.is_adversarial(logits_fn(images), labels, targets)
  # Computed from the arguments, not constants: under shard_map, a loop carry must vary over devices from the start.
  zeros, none = 0.0 * images[:, 0, 0, 0], 0 * labels.astype(jnp.int32)
  return Nearest(images, jnp.where(done, zeros, jnp.inf), none, none)


def update(nearest: Nearest, points: Array, success: Array, distance: Array) -> Nearest:
  """Replaces the nearest adversarials by points that are adversarial and nearer. Does not count an iterate."""
  nearer = success & (distance < nearest.distance)
  return nearest._replace(
    images=jnp.where(per_image(nearer), points, nearest.images),
    distance=jnp.where(nearer, distance, nearest.distance),
  )


def count(nearest: Nearest, right: Array, gradient: Array | None = None) -> Nearest:
  """Counts one more iterate, if the model gets it right, and one more gradient, if an entry is NaN or infinite."""
  broken = 0 if gradient is None else (~threat_model.finite(gradient)).astype(jnp.int32)
  return nearest._replace(survived=nearest.survived + right.astype(jnp.int32), broken=nearest.broken + broken)


def finish(
  logits_fn: LogitsFn,
  labels: Array,
  images: Array,
  nearest: Nearest,
  distance: Array,
  epsilon: float | Array,
  targets: Array | None = None,
) -> AttackResult:
  """The result: the nearest adversarials if their `distance` [batch] is at most epsilon, else the clean images."""
  counted = distance <= epsilon
  found = jnp.where(per_image(counted), nearest.images, images)
  survived = jnp.where(nearest.distance == 0, 0, nearest.survived)
  return finished(logits_fn, labels, found, survived, nearest.broken, targets, distance)


def search_constants(
  run: Callable[[Array, Nearest], tuple[Nearest, Array]], nearest: Nearest, initial_const: float, num_values: int
) -> Nearest:
  """Tries `num_values` constants for each image (Carlini & Wagner, arXiv:1608.04644, section V).

  Until a constant is large enough, the next one is ten times larger; after that, it is the middle between the largest
  that was too small and the smallest that was large enough.

  Args:
    run: (constants [batch], nearest) -> (nearest, whether the constant was large enough, bool [batch]).
    nearest: from `begin`.
    initial_const: the first constant.
    num_values: number of constants, 1 or more.
  """

  def step(_, carry):
    constants, low, high, nearest = carry
    nearest, fell = run(constants, nearest)
    high = jnp.where(fell, jnp.minimum(high, constants), high)
    low = jnp.where(fell, low, jnp.maximum(low, constants))
    constants = jnp.where(jnp.isinf(high), _GROWTH * constants, 0.5 * (low + high))
    return constants, low, high, nearest

  zeros = 0.0 * nearest.images[:, 0, 0, 0]
  return lax.fori_loop(0, num_values, step, (zeros + initial_const, zeros, zeros + jnp.inf, nearest))[-1]


def cosine(index: int | Array, num_steps: int, first: float, last: float, dtype: jnp.dtype) -> Array:
  """A schedule that decreases from `first` at step 0 to `last` at step num_steps along half a cosine."""
  share = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.asarray(index, dtype) / num_steps))
  return last + (first - last) * share
