"""The shortest step from a point onto a hyperplane inside the unit box, for each norm; used for the steps of FAB."""

import jax.numpy as jnp
from jax import Array, lax


def _raise_level(gains: Array, rooms: Array, speeds: Array, need: Array) -> Array:
  """Returns moves [batch, n] = min(level * speed, room), at the smallest level with sum(gain * move) = need.

  The sum is concave and piecewise linear in the level, so Newton's method from level 0 increases to the solution
  without overshooting, and stays there: an image's result does not depend on the number of iterations that other
  images in the batch need. The caller ensures that `need` [batch] can be reached.
  """

  def refine(carry):
    level, _ = carry
    free = level[:, None] * speeds < rooms
    spent = jnp.sum(jnp.where(free, 0.0, gains * rooms), axis=-1)
    slope = jnp.sum(jnp.where(free, gains * speeds, 0.0), axis=-1)
    higher = jnp.maximum(level, (need - spent) / jnp.where(slope > 0, slope, jnp.inf))
    return higher, higher > level

  start = 0.0 * need
  level, _ = lax.while_loop(lambda carry: jnp.any(carry[1]), refine, (start, start == 0.0))
  return jnp.minimum(level[:, None] * speeds, rooms)


def _best_first(gains: Array, rooms: Array, need: Array) -> Array:
  """Returns moves [batch, n] of smallest sum with sum(gain * move) = need: largest gains first, each up to its room."""
  order = jnp.argsort(-gains, axis=-1)
  sorted_gains, sorted_rooms = (jnp.take_along_axis(values, order, axis=-1) for values in (gains, rooms))
  worth = sorted_gains * sorted_rooms
  left = need[:, None] - (jnp.cumsum(worth, axis=-1) - worth)
  moves = jnp.clip(left / jnp.where(sorted_gains > 0, sorted_gains, jnp.inf), 0.0, sorted_rooms)
  return jnp.take_along_axis(moves, jnp.argsort(order, axis=-1), axis=-1)


def step_onto(points: Array, normals: Array, values: Array, norm: str) -> Array:
  """The shortest delta with <normal, delta> = -value and point + delta in [0, 1] (FAB, arXiv:1907.02044, eq. 4).

  If the box contains no such point, each entry moves to its bound on the hyperplane's side, as near as the box allows.

  Args:
    points: float [batch, ...] in [0, 1].
    normals: float [batch, ...], the gradient of a linear function.
    values: float [batch], that function at the points; 0 on the hyperplane.
    norm: "linf", "l2" or "l1", the norm in which the step is shortest.

  Returns:
    float [batch, ...], the steps.
  """
  flat = points.reshape(points.shape[0], -1)
  # Scaled to a largest entry of 1, so that squares of tiny gradients do not underflow.
  largest = jnp.max(jnp.abs(normals.reshape(flat.shape)), axis=-1, keepdims=True)
  scale = jnp.where(largest > 0, largest, 1.0)
  downhill = -normals.reshape(flat.shape) / scale * jnp.where(values >= 0, 1.0, -1.0)[:, None]
  gains = jnp.abs(downhill)
  rooms = jnp.where(downhill > 0, 1.0 - flat, flat) * (gains > 0)
  reachable = jnp.sum(gains * rooms, axis=-1)
  need = jnp.minimum(jnp.abs(values) / scale[:, 0], reachable)
  if norm == "l1":
    moves = _best_first(gains, rooms, need)
  else:
    speeds = gains if norm == "l2" else (gains > 0).astype(gains.dtype)
    moves = _raise_level(gains, rooms, speeds, need)
  moves = jnp.where((need < reachable)[:, None], moves, rooms)
  return (jnp.sign(downhill) * moves).reshape(points.shape)
