"""HopSkipJump: moves along the decision boundary towards the image, using only the model's predictions."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lrat_jax.attacks import _minimum_norm, losses, threat_model
from lrat_jax.attacks._entry import AttackResult, entry
from lrat_jax.attacks.threat_model import per_image
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn, Scalar

# Number of random images to try as a start.
_STARTS = 100
# Length of the random draws around the first point; later it is computed from the distance.
_FIRST_SPREAD = 0.1
# A step is skipped after this many halvings. A binary search ends there too, because float32 has no more bits.
_HALVINGS = 24
_TINY = 1e-12

# points [batch, h, w, c] -> whether they are adversarial, bool [batch]
Ask = Callable[[Array], Array]


class _State(NamedTuple):
  """The state of the attack: arrays [batch, ...]."""

  points: Array  # adversarial, once one is found
  found: Array  # bool: whether an adversarial has been found
  survived: Array  # int32: number of queries that the model gets right


def evaluations(step: int | Array, initial: int, most: int):
  """The queries for the gradient at a step 0, 1, ...: initial * sqrt(step + 1), rounded down, at most `most`."""
  return jnp.minimum(jnp.floor(initial * jnp.sqrt(jnp.asarray(step, jnp.float32) + 1.0)), most).astype(jnp.int32)


def halvings(image_size: int, norm: str, gamma: float) -> int:
  """The queries of a binary search that reduces an interval to gamma / d^1.5 (l2) or gamma / d^2 (linf) of its size."""
  share = gamma / image_size ** (1.5 if norm == "l2" else 2.0)
  return min(max(math.ceil(-math.log2(share)), 1), _HALVINGS)


def _start(ask: Ask, keys: Array, images: Array, state: _State) -> _State:
  """Draws up to `_STARTS` random images, and keeps the first one that is adversarial."""

  def draw(carry):
    number, state = carry
    uniform = lambda key: jax.random.uniform(jax.random.fold_in(key, number), images.shape[1:])
    points = jax.vmap(uniform)(keys).astype(images.dtype)
    success = ask(points)
    new = success & ~state.found
    return number + 1, _State(
      jnp.where(per_image(new), points, state.points),
      state.found | success,
      state.survived + (~success & ~state.found).astype(jnp.int32),
    )

  return lax.while_loop(lambda carry: (carry[0] < _STARTS) & ~jnp.all(carry[1].found), draw, (0, state))[1]


def _between(images: Array, points: Array, share: Array, norm: str) -> Array:
  """Moves images to points by a share [batch]: on the line (l2), or clipped to that share of the distance (linf)."""
  if norm == "l2":
    return (1.0 - per_image(share)) * images + per_image(share) * points
  reach = per_image(share * threat_model.get_norm(norm).length(points - images))
  return jnp.where(per_image(share) == 1.0, points, jnp.clip(points, images - reach, images + reach))


def _to_boundary(ask: Ask, images: Array, state: _State, norm: str, count: int) -> _State:
  """A binary search between the images and the points; the new points stay on the adversarial side."""

  def halve(_, carry):
    low, high, survived = carry
    middle = 0.5 * (low + high)
    success = ask(_between(images, state.points, middle, norm))
    return (
      jnp.where(success, low, middle),
      jnp.where(success, middle, high),
      survived + (~success).astype(jnp.int32),
    )

  zeros = 0.0 * images[:, 0, 0, 0]
  _, high, survived = lax.fori_loop(0, count, halve, (zeros, zeros + 1.0, state.survived))
  return state._replace(points=_between(images, state.points, high, norm), survived=survived)


def _direction(ask: Ask, keys: Array, state: _State, spread: Array, norm: str, count: Array) -> tuple[Array, Array]:
  """Returns the adversarial direction, of unit length, estimated from draws of length `spread`, and `survived`."""
  points = state.points

  def query(index, carry):
    signed, total, mean, survived = carry
    draw = jax.random.normal if norm == "l2" else lambda key, shape: jax.random.uniform(key, shape, minval=-1.0)
    noise = jax.vmap(lambda key: draw(jax.random.fold_in(key, index), points.shape[1:]))(keys).astype(points.dtype)
    noise = threat_model.get_norm("l2").steepest(noise)
    asked = jnp.clip(points + per_image(spread) * noise, 0.0, 1.0)
    noise = (asked - points) / per_image(jnp.maximum(spread, _TINY))
    success = ask(asked)
    vote = jnp.where(success, 1.0, -1.0).astype(points.dtype)
    share = 1.0 / count.astype(points.dtype)
    return (
      signed + share * per_image(vote) * noise,
      total + share * noise,
      mean + share * vote,
      survived + (~success).astype(jnp.int32),
    )

  zeros = 0.0 * points
  signed, total, mean, survived = lax.fori_loop(0, count, query, (zeros, zeros, zeros[:, 0, 0, 0], state.survived))
  # The mean vote is subtracted, which reduces the variance, unless all votes are equal.
  baseline = jnp.where(jnp.abs(mean) < 1.0 - 1e-5, mean, 0.0)
  return threat_model.get_norm(norm).steepest(signed - per_image(baseline) * total), survived


def _jump(ask: Ask, state: _State, direction: Array, step_size: Array) -> _State:
  """Moves the points along the directions, by a length [batch] that is halved until the new point is adversarial."""

  def attempt(carry):
    number, length, moved, arrived, survived = carry
    asked = jnp.clip(state.points + per_image(length) * direction, 0.0, 1.0)
    success = ask(asked)
    moved = jnp.where(per_image(success & ~arrived), asked, moved)
    survived += (~success & ~arrived).astype(jnp.int32)
    return number + 1, 0.5 * length, moved, arrived | success, survived

  unfinished = lambda carry: (carry[0] < _HALVINGS) & ~jnp.all(carry[3])
  start = 0, step_size, state.points, ~state.found, state.survived
  moved, _, survived = lax.while_loop(unfinished, attempt, start)[2:]
  return state._replace(points=moved, survived=survived)


@entry(norm=("l2", "linf"), num_steps=0, initial_num_evals=1, max_num_evals=1, gamma="(0, 1e6]")
def hop_skip_jump(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar = math.inf,
  norm: str = "l2",
  num_steps: int = 64,
  initial_num_evals: int = 100,
  max_num_evals: int = 10_000,
  gamma: float = 1.0,
) -> AttackResult:
  """HopSkipJump, a decision-based minimum-norm attack (Chen et al., arXiv:1904.02144, algorithm 2).

  It starts at a random image of another class. A binary search moves the point to the boundary, and the predictions on
  random points around it give an estimate of the adversarial direction. A step in this direction, halved until the new
  point is adversarial, is the start of the next search. Only predictions are used. In Foolbox it is
  `HopSkipJumpAttack`, with num_steps as `steps`, initial_num_evals as `initial_gradient_eval_steps` and max_num_evals
  as `max_gradient_eval_steps`.

  Args:
    key: a typed key, which is split over the batch, or one key per image [batch].
    logits_fn: images -> logits [batch, classes]; only the class of the largest logit is used.
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    epsilon: perturbations longer than this do not count; inf: all count. May be traced.
    norm: "l2" or "linf".
    num_steps: number of jumps.
    initial_num_evals: queries for the first direction; direction t takes sqrt(t) times as many.
    max_num_evals: maximum number of queries for a direction.
    gamma: the tolerance of the binary search is gamma / d^1.5 (l2) or gamma / d^2 (linf) times the distance, with d
      components in an image; the length of the draws around a point is gamma / d times the distance.

  Returns:
    AttackResult: the nearest adversarial found, if its distance is at most epsilon, else the clean image unchanged;
    also unchanged if the model is wrong on it, or if none of 100 random images is adversarial. `surviving_steps`: the
    number of queries that the model gets right.

  Raises:
    ValueError: an argument outside the values listed here.
  """
  length, size = threat_model.get_norm(norm).length, math.prod(images.shape[1:])
  ask = lambda points: losses.is_adversarial(logits_fn(points), labels)
  search = lambda state: _to_boundary(ask, images, state, norm, halvings(size, norm, gamma))

  def step(index, carry):
    state, nearest = carry
    distance = length(state.points - images)
    spread = jnp.where(index == 0, _FIRST_SPREAD, gamma / size * distance)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _STARTS + index))(key)
    count = evaluations(index, initial_num_evals, max_num_evals)
    direction, survived = _direction(ask, keys, state, spread, norm, count)
    step_size = distance / jnp.sqrt(jnp.asarray(index, images.dtype) + 1.0)
    state = search(_jump(ask, state._replace(survived=survived), direction, step_size))
    return state, _minimum_norm.update(nearest, state.points, state.found, length(state.points - images))

  nearest = _minimum_norm.begin(logits_fn, images, labels)
  done = jnp.isfinite(nearest.distance)
  state = search(_start(ask, key, images, _State(images, done, nearest.survived)))
  nearest = _minimum_norm.update(nearest, state.points, state.found, length(state.points - images))
  state, nearest = lax.fori_loop(0, num_steps, step, (state, nearest))
  nearest = nearest._replace(survived=state.survived)
  return _minimum_norm.finish(logits_fn, labels, images, nearest, nearest.distance, epsilon)._replace(
    broken_gradients=None
  )
