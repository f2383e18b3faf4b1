"""HopSkipJump: along the decision boundary towards the image, by the model's predictions alone."""

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

# Random images that are tried for a start.
_STARTS = 100
# Length of the draws around the first point; later it follows from the distance.
_FIRST_SPREAD = 0.1
# A step that is this often halved is none. A float32 has no more bits than this for a binary search either.
_HALVINGS = 24
_TINY = 1e-12

# points [batch, h, w, c] -> whether they are adversarial, bool [batch]
Ask = Callable[[Array], Array]


class _State(NamedTuple):
  """Where the walk stands: [batch, ...] arrays."""

  points: Array  # adversarial, once one is found
  found: Array  # bool: whether one is
  survived: Array  # int32: queries that the model withstood


def evaluations(step: int | Array, initial: int, most: int):
  """Queries for the gradient at that step, counted from 0: initial * sqrt(step + 1), rounded down, `most` at most."""
  return jnp.minimum(jnp.floor(initial * jnp.sqrt(jnp.asarray(step, jnp.float32) + 1.0)), most).astype(jnp.int32)


def halvings(image_size: int, norm: str, gamma: float) -> int:
  """Queries of a binary search: until the interval is gamma / d^1.5 (l2) or gamma / d^2 (linf) of what it was."""
  share = gamma / image_size ** (1.5 if norm == "l2" else 2.0)
  return min(max(math.ceil(-math.log2(share)), 1), _HALVINGS)


def _start(ask: Ask, keys: Array, images: Array, state: _State) -> _State:
  """The first of a number of random images that is adversarial."""

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
  """Points at that share [batch] of the way: on the line (l2), or clipped to that share of the distance (linf)."""
  if norm == "l2":
    return (1.0 - per_image(share)) * images + per_image(share) * points
  reach = per_image(share * threat_model.get_norm(norm).length(points - images))
  return jnp.where(per_image(share) == 1.0, points, jnp.clip(points, images - reach, images + reach))


def _to_boundary(ask: Ask, images: Array, state: _State, norm: str, count: int) -> _State:
  """A binary search between the images and the points, which stay on the adversarial side."""

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
  """Which way is adversarial, of unit length, by draws of length `spread` [batch]; and the queries withstood."""
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
  # The mean vote is taken off, which lowers the variance, unless all votes are the same.
  baseline = jnp.where(jnp.abs(mean) < 1.0 - 1e-5, mean, 0.0)
  return threat_model.get_norm(norm).steepest(signed - per_image(baseline) * total), survived


def _jump(ask: Ask, state: _State, direction: Array, step_size: Array) -> _State:
  """From the points along the directions, by a length [batch] that is halved until the end is adversarial."""

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

  It starts at a random image of another class. A binary search brings the point to the boundary, votes of random points
  around it say which way is adversarial, and a step that way, halved until its end is adversarial, leads to the next
  search. It asks for predictions alone. In Foolbox it is `HopSkipJumpAttack`, with num_steps as `steps`,
  initial_num_evals as `initial_gradient_eval_steps` and max_num_evals as `max_gradient_eval_steps`.

  Args:
    key: a typed key, which is split over the batch, or one key per image [batch].
    logits_fn: images -> logits [batch, classes], of which only the largest counts.
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    epsilon: perturbations longer than this do not count; inf: all count. May be traced.
    norm: "l2" or "linf".
    num_steps: jumps.
    initial_num_evals: queries for the first direction; for number t it is sqrt(t) times as many.
    max_num_evals: the most queries for a direction.
    gamma: the binary search ends within gamma / d^1.5 (l2) or gamma / d^2 (linf) of the distance, d the components of
      an image; the draws around a point are gamma / d of the distance long.

  Returns:
    AttackResult: the nearest adversarial found, if its distance is at most epsilon, else the clean image unchanged;
    also unchanged where the model is wrong on it, or none of 100 random images is adversarial. `surviving_steps`:
    queries that the model withstood.

  Raises:
    ValueError: an argument outside what is listed here.
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
