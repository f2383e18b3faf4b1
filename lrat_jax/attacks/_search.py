"""Attacks that only ask: of a sequence of points, the first that fools the model, or the one that comes nearest."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from lrat_jax.attacks import losses
from lrat_jax.attacks._entry import AttackResult, finished
from lrat_jax.core.typing import LogitsFn


class _State(NamedTuple):
  """Where the search stands: [batch, ...] arrays."""

  best: Array  # the points with the largest margin so far
  margin: Array  # theirs
  fooled: Array  # bool: the attack has succeeded
  survived: Array  # int32


def _ask(logits_fn: LogitsFn, points: Array, labels: Array, targets: Array | None, state: _State) -> _State:
  """One query for each image: the points stay where they raise the margin or succeed."""
  logits = logits_fn(points)
  margin = losses.margin(logits, labels) if targets is None else -losses.margin(logits, targets)
  success = losses.is_adversarial(logits, labels, targets)
  better = ~state.fooled & (success | (margin > state.margin))
  return _State(
    jnp.where(better[:, None, None, None], points, state.best),
    jnp.where(better, margin, state.margin),
    state.fooled | success,
    state.survived + (~state.fooled & losses.is_correct(logits, labels)).astype(jnp.int32),
  )


def search(
  logits_fn: LogitsFn,
  images: Array,
  labels: Array,
  start: Array,
  propose: Callable[[Array, Array], Array],
  num_queries: int,
  targets: Array | None = None,
) -> AttackResult:
  """Asks about `start`, then `num_queries` times about propose(best points, query), query = 0, 1, ...

  An image is done with the first point that fools the model, or whose prediction is its target, and the loop ends when
  all are. Images on which that holds at once come back as they are.

  Returns:
    AttackResult: the best points; `surviving_steps` counts the queries that the model withstood, the start's included,
    in 0..num_queries + 1.
  """

  def step(carry: tuple[Array, _State]) -> tuple[Array, _State]:
    query, state = carry
    return query + 1, _ask(logits_fn, propose(state.best, query), labels, targets, state)

  unfinished = lambda carry: (carry[0] < num_queries) & ~jnp.all(carry[1].fooled)
  done = losses.is_adversarial(logits_fn(images), labels, targets)
  lowest = 0.0 * images[:, 0, 0, 0] - jnp.inf
  state = _ask(logits_fn, start, labels, targets, _State(images, lowest, done, 0 * labels.astype(jnp.int32)))
  state = lax.while_loop(unfinished, step, (jnp.int32(0), state))[1]
  return finished(logits_fn, labels, state.best, state.survived, targets=targets)
