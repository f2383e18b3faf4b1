"""Decision boundaries, linearised at a point, for the steps of FAB and DeepFool."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lrat_jax.attacks import threat_model
from lrat_jax.attacks.threat_model import per_image
from lrat_jax.core.typing import LogitsFn

# Prevents 0 / 0 in the distances.
_TINY_SLOPE = 1e-12
# Number of classes whose gradients are computed together, so that memory does not grow with the number of classes.
_CLASSES_AT_ONCE = 10


class Boundary(NamedTuple):
  """z_class - z_label for one class per image, linearised at a point."""

  values: Array  # [batch]
  gradients: Array  # [batch, h, w, c], without NaN
  broken: Array  # bool [batch]: whether a gradient had a NaN or infinite entry


def targeted(logits_fn: LogitsFn, points: Array, rivals: Array | None, targets: Array) -> tuple[Boundary, Array]:
  """The boundaries between the targets and the rivals (None: the most likely other class), and the logits."""

  def total_gap(points):
    logits = logits_fn(points)
    if rivals is None:
      others = jnp.where(jax.nn.one_hot(targets, logits.shape[-1], dtype=bool), -jnp.inf, logits)
      against = jnp.argmax(others, axis=-1)
    else:
      against = rivals
    pair = jnp.take_along_axis(logits, jnp.stack([targets, against], axis=-1), axis=-1)
    gaps = pair[:, 0] - pair[:, 1]
    return jnp.sum(gaps), (gaps, logits)

  gradients, (values, logits) = jax.grad(total_gap, has_aux=True)(points)
  return Boundary(values, threat_model.numbers(gradients), ~threat_model.finite(gradients)), logits


def nearest(
  logits_fn: LogitsFn, points: Array, labels: Array, norm: str, classes: Array | None = None
) -> tuple[Boundary, Array]:
  """The nearest of the linearised boundaries, and the logits. Takes one gradient per class, in small groups.

  Args:
    logits_fn: images -> logits [batch, classes].
    points: float [batch, h, w, c], where the model is linearised.
    labels: int [batch].
    norm: the norm of the distance.
    classes: int [batch, n], the candidate classes of each image; None: all. The image's label is ignored.
  """
  logits, pull_back = jax.vjp(logits_fn, points)
  num_classes = logits.shape[-1]
  gaps = logits - jnp.take_along_axis(logits, labels[:, None], axis=-1)
  candidates = jnp.arange(num_classes)[:, None] if classes is None else classes.T
  size = min(len(candidates), _CLASSES_AT_ONCE)

  def towards(target: Array) -> tuple[Array, Boundary]:
    """For one class per image [batch]: its distance [batch], inf if it is the label, and its boundary."""
    target = jnp.broadcast_to(target, labels.shape)
    row = jax.nn.one_hot(target, num_classes) - jax.nn.one_hot(labels, num_classes)
    raw = pull_back(row.astype(logits.dtype))[0]
    gradients, values = threat_model.numbers(raw), jnp.take_along_axis(gaps, target[:, None], axis=-1)[:, 0]
    distance = jnp.abs(values) / (_TINY_SLOPE + threat_model.get_norm(threat_model.DUAL[norm]).length(gradients))
    return jnp.where(labels == target, jnp.inf, distance), Boundary(
      values, gradients, jnp.isfinite(values) & ~threat_model.finite(raw)
    )

  def block(number: int | Array, best: tuple[Array, Boundary]) -> tuple[Array, Boundary]:
    rows = jnp.minimum(number * size + jnp.arange(size), len(candidates) - 1)
    found = jax.vmap(towards)(candidates[rows])
    first = jnp.argmin(found[0], axis=0)
    pick = lambda x: jnp.take_along_axis(x, per_image(first, x.ndim - 1)[None], axis=0)[0]
    picked = jax.tree.map(pick, found)
    choose = lambda new, old: jnp.where(per_image(picked[0] < best[0], new.ndim), new, old)
    distance, boundary = jax.tree.map(choose, picked, best)
    return distance, boundary._replace(broken=best[1].broken | jnp.any(found[1].broken, axis=0))

  zeros = 0.0 * points[:, 0, 0, 0]
  start = zeros + jnp.inf, Boundary(zeros, 0.0 * points, zeros > 0)
  blocks = math.ceil(len(candidates) / size)
  return (block(0, start) if blocks == 1 else lax.fori_loop(0, blocks, block, start))[1], logits
