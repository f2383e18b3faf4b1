"""The L1 ball: sparse steps, APGD's rules for them, and the projection onto the intersection of the ball and [0, 1].

From Croce & Hein, "Mind the box" (arXiv:2103.01208), as AutoAttack runs it.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

# Bisection steps for the threshold, before it is solved for exactly.
_HALVINGS = 25
# The step size is divided by this, and so is the support that the next steps move.
_REDUCTION = 1.5
# The smallest step size, as a share of the first one.
_SMALLEST_STEP = 0.1
# The support has shrunk if it is below this share of its last value.
_SHRUNK = 0.95
_SCHEDULE = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))


class Pace(NamedTuple):
  """The state of the rule, each [batch]: step size, share of coordinates to move, support at the last check."""

  step_size: Array
  share: Array
  support: Array


def _flat(x: Array) -> Array:
  return x.reshape(x.shape[0], -1)


def _support(delta: Array) -> Array:
  return jnp.sum(_flat(delta) != 0, axis=1).astype(jnp.float32)


def project(points: Array, originals: Array, epsilon: float | Array) -> Array:
  """Projects (in L2) onto the intersection of the L1 ball around `originals` and [0, 1]; all [batch, h, w, c].

  All differences of an image are shrunk by one threshold and clipped to the room that [0, 1] leaves. The remaining
  length decreases piecewise linearly in the threshold, so a bisection finds the linear piece, which is then solved.
  """
  delta = _flat(points - originals)
  sizes = jnp.abs(delta)
  room = jnp.where(delta > 0, 1.0 - _flat(originals), _flat(originals))
  kept = lambda threshold: jnp.clip(sizes - threshold[:, None], 0.0, room)
  too_long = lambda threshold: jnp.sum(kept(threshold), axis=1) > epsilon

  def halve(_, bracket):
    low, high = bracket
    middle = 0.5 * (low + high)
    above = too_long(middle)
    return jnp.where(above, middle, low), jnp.where(above, high, middle)

  largest = jnp.max(sizes, axis=1)
  low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (0.0 * largest, largest))
  moving = (sizes > low[:, None]) & (sizes - low[:, None] < room)
  full = (sizes > low[:, None]) & ~moving
  surplus = jnp.sum(jnp.where(moving, sizes, 0.0) + jnp.where(full, room, 0.0), axis=1) - epsilon
  solved = jnp.clip(surplus / jnp.maximum(jnp.sum(moving, axis=1), 1), low, high)
  threshold = jnp.where(too_long(0.0 * largest), solved, 0.0)
  return jnp.clip(originals + (jnp.sign(delta) * kept(threshold)).reshape(points.shape), 0.0, 1.0)


def schedule(num_steps: int) -> list[tuple[float, int]]:
  """(factor of epsilon, steps) of the three parts of a run: 30% at 3 epsilon, 30% at 2 epsilon, the rest at epsilon."""
  parts = [math.ceil(share * num_steps) for _, share in _SCHEDULE[:-1]]
  parts = [min(parts[0], num_steps), min(parts[1], max(num_steps - parts[0], 0))]
  return list(zip((factor for factor, _ in _SCHEDULE), (*parts, num_steps - sum(parts)), strict=True))


def period(num_steps: int) -> int:
  """Steps between two checks of the support."""
  return max(int(0.04 * num_steps), 1)


def begin(points: Array, originals: Array, epsilon: float | Array) -> Pace:
  """The initial pace at a start from a larger ball; the share of coordinates is computed from the start's support."""
  support = _support(points - originals)
  return Pace(epsilon + 0.0 * support, support / _flat(originals).shape[1] / _REDUCTION, support)


def direction(gradient: Array, share: Array | float) -> Array:
  """A step of L1 length 1, equal along the `share` of coordinates with the largest gradients, at least one of them."""
  sizes = jnp.abs(_flat(gradient))
  count = sizes.shape[1]
  rank = jnp.clip((1.0 - share) * count, 0, count - 1).astype(jnp.int32)
  rank = jnp.broadcast_to(rank, sizes.shape[:1])[:, None]
  least = jnp.take_along_axis(jnp.sort(sizes, axis=1), rank, axis=1)
  signs = jnp.where(sizes >= least, jnp.sign(_flat(gradient)), 0.0)
  return (signs / (jnp.sum(jnp.abs(signs), axis=1, keepdims=True) + 1e-10)).reshape(gradient.shape)


def movable(points: Array, gradient: Array) -> Array:
  """The gradient with 0 at coordinates that it would move out of [0, 1], because their part of a step would be wasted.

  As in Maini et al. (arXiv:1909.04068).
  """
  at_edge = jnp.where(gradient > 0, points >= 1.0, points <= 0.0)
  return jnp.where(at_edge, 0.0, gradient)


def move(pace: Pace, points: Array, gradient: Array, originals: Array, epsilon: float | Array) -> Array:
  """A step of equal size along the coordinates with the largest gradients, projected."""
  step = pace.step_size.reshape(-1, *(1,) * (points.ndim - 1)) * direction(gradient, pace.share)
  return project(points + step, originals, epsilon)


def adapt(pace: Pace, best_points: Array, originals: Array, epsilon: float | Array) -> tuple[Pace, Array]:
  """The pace after a check, and which images [batch] continue from their best point, because the support shrank."""
  support = _support(best_points - originals)
  shrunk = support / pace.support < _SHRUNK
  step_size = jnp.where(shrunk, epsilon, pace.step_size / _REDUCTION)
  step_size = jnp.clip(step_size, _SMALLEST_STEP * epsilon, epsilon)
  return Pace(step_size, support / _flat(originals).shape[1] / _REDUCTION, support), shrunk
