"""The loop of all gradient attacks with fixed steps: gradient ascent on a latent, and the best of several runs.

An attack consists of a latent o, a differentiable decoder A from latents to images, and an update rule that keeps the
latent in its ball. In PGD the latent is the image, and the decoder is the identity.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from lrat_jax.attacks import losses, threat_model, transforms
from lrat_jax.attacks._entry import AttackResult, finished
from lrat_jax.core.typing import LogitsFn, Scalar

T = TypeVar("T")

# Folded into a run's keys for the random draws of its transform; no restart has this index.
_TRANSFORM_STREAM = 2**31 - 1


def as_it_is(latent: Array) -> Array:
  """The identity: the decoder of an attack whose latent is the image."""
  return latent


def ascent(
  logits_fn: LogitsFn,
  labels: Array,
  surrogate: Callable[[Array], Array],
  advance: Callable[[Array, Array, Array], Array],
  num_steps: int,
  decode: Callable[[Array], Array] = as_it_is,
  transform: transforms.GradientTransform = transforms.IDENTITY,
  step_size: Scalar = 0.0,
) -> Callable[[Array, Array], AttackResult]:
  """Returns a function that runs `num_steps` steps o <- advance(step, o, gradient of the loss of A(o)).

  Args:
    surrogate: logits [batch, classes] -> the loss to maximise [batch].
    advance: (step 0, 1, ..., latent, gradient without NaN) -> the next latent, inside its ball.
    decode: latent -> images [batch, h, w, c] in [0, 1].
    transform: gradient transform, applied to the latents and their gradients.
    step_size: the step size with which the transform looks ahead.

  Returns:
    (first latent [batch, ...], keys [batch], only for the transform) -> AttackResult: the images of the last latent;
    `surviving_steps` counts the steps at whose start the model was right.
  """

  def total_loss(latent: Array, keys: Array, state: Any) -> tuple[Array, Array]:
    logits = logits_fn(decode(transform.inputs(keys, latent, state, step_size)))
    return jnp.sum(surrogate(logits)), logits  # a sum, so images do not affect each other's gradients

  def step(index: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
    latent, survived, broken, state, keys = carry
    step_keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, _TRANSFORM_STREAM), index))(keys)
    gradient, logits = jax.grad(total_loss, has_aux=True)(latent, step_keys, state)
    survived += losses.is_correct(logits, labels).astype(jnp.int32)
    broken += (~threat_model.finite(gradient)).astype(jnp.int32)
    direction, state = transform.update(threat_model.numbers(gradient), state)
    return advance(index, latent, direction), survived, broken, state, keys

  def run(start: Array, keys: Array) -> AttackResult:
    # Computed from the labels, not a constant: under shard_map, a loop carry must vary over devices from the start.
    none = 0 * labels.astype(jnp.int32)
    carry = (start, none, none, transform.init(start), keys)
    latent, survived, broken, *_ = jax.lax.fori_loop(0, num_steps, step, carry)
    return AttackResult(decode(latent), survived, broken_gradients=broken)

  return run  # restarts reuse what is traced here


def best_run(run: Callable[[Array], T], score: Callable[[T], Array], keys: Array, num_restarts: int) -> T:
  """Returns, for each image, the run with the highest score [batch] out of `num_restarts` runs with different keys.

  `run` maps keys [batch] to a tree of arrays [batch, ...]. If scores are equal, the first run is used.
  """

  def restart(index, carry):
    best, best_score = carry
    result = run(jax.vmap(lambda key: jax.random.fold_in(key, index))(keys))
    new_score = score(result)
    better = new_score > best_score
    choose = lambda new, old: jnp.where(better.reshape(better.shape + (1,) * (new.ndim - 1)), new, old)
    return jax.tree.map(choose, result, best), jnp.maximum(best_score, new_score)

  first = run(keys)
  if num_restarts == 1:  # nothing to compare, so no forward pass for a score
    return first
  return jax.lax.fori_loop(1, num_restarts, restart, (first, score(first)))[0]


def strongest(
  run: Callable[[Array], AttackResult],
  keys: Array,
  num_restarts: int,
  logits_fn: LogitsFn,
  labels: Array,
  surrogate: Callable[[Array], Array],
  targets: Array | None = None,
) -> AttackResult:
  """The attack's result: for each image the first successful run, else the run with the highest loss."""

  def score(result: AttackResult) -> Array:
    logits = logits_fn(result.images)
    score = jnp.where(losses.is_adversarial(logits, labels, targets), jnp.inf, surrogate(logits))
    return jnp.where(threat_model.finite(result.images), score, -jnp.inf)

  best = best_run(run, score, keys, num_restarts)
  return finished(logits_fn, labels, best.images, best.surviving_steps, best.broken_gradients, targets)
