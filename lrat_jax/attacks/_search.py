"""Black-box search: of a sequence of points, the first that fools the model, or else the one of largest margin."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from lrat_jax.attacks import losses
from lrat_jax.attacks._entry import AttackResult, finished
from lrat_jax.core.typing import LogitsFn


class _State(NamedTuple):
  """The state of the search: arrays [batch, ...]."""

  best: Array  # the points with the largest margin so far
  margin: Array  # of these points
  fooled: Array  # bool: the attack has succeeded
  survived: Array  # int32: queries before success on which the model was right


def _ask(logits_fn: LogitsFn, points: Array, labels: Array, targets: Array | None, state: _State) -> _State:
  """One query for each image: a point is kept if it raises the margin or succeeds."""
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
  """Evaluates `start`, then `num_queries` times propose(best points, query), query = 0, 1, ...

  The search of an image ends at the first point that fools the model or, with targets, is predicted as the target. The
  loop ends when all images are done. Images that are adversarial already are returned unchanged.

  Returns:
    AttackResult: the best points; `surviving_steps` counts the queries before success, including the start, on which
    the model was right, in 0..num_queries + 1.
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
