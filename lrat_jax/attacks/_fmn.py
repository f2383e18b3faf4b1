"""FMN: projected gradient ascent in a ball whose radius follows the distance to the decision boundary."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from lrat_jax.attacks import _minimum_norm, losses, threat_model
from lrat_jax.attacks._entry import AttackResult, entry
from lrat_jax.attacks._minimum_norm import Nearest
from lrat_jax.attacks.threat_model import per_image
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn, Scalar

# Prevents 0 / 0 in the distance to the boundary if a gradient vanishes.
_TINY = 1e-12
_STEP_SIZES = "(0, 1e6]"


def _keep_largest(delta: Array, count: Array) -> Array:
  """Sets all but the `count` [batch], 1 or more, largest components of delta [batch, ...] to 0; ties are all kept."""
  sizes = jnp.abs(delta).reshape(delta.shape[0], -1)
  ordered = jnp.flip(jnp.sort(sizes, axis=1), axis=1)
  least = jnp.take_along_axis(ordered, count.astype(jnp.int32)[:, None] - 1, axis=1)[:, 0]
  return jnp.where(jnp.abs(delta) >= per_image(least, delta.ndim), delta, 0.0)


def _count(number: Array, success: Array, share: Array, nearest: Nearest) -> Array:
  """The next number of components that may differ [batch]: changed by `share`, but at least by one."""
  fewer = jnp.minimum(jnp.minimum(number - 1.0, jnp.floor(number * (1.0 - share))), nearest.distance)
  more = jnp.maximum(number + 1.0, jnp.floor(number * (1.0 + share)))
  return jnp.maximum(jnp.where(success, fewer, more), 1.0)


def _radius(radius: Array, success: Array, share: Array, nearest: Nearest, boundary: Array) -> Array:
  """The next radius [batch]: smaller or larger by `share`; before the first success, larger than `boundary`."""
  # The paper uses the boundary itself, but a locally linear model is not yet wrong on its boundary.
  least = jnp.where(jnp.isfinite(nearest.distance), radius, jnp.maximum(radius, boundary))
  return jnp.where(success, jnp.minimum(radius * (1.0 - share), nearest.distance), least * (1.0 + share))


@entry(
  norm=(threat_model.L0, *threat_model.NORMS), num_steps=0, alpha_init=_STEP_SIZES, alpha_final=_STEP_SIZES,
  gamma_init="[0, 1)", gamma_final="[0, 1)",
)  # fmt: skip
def fmn(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar = math.inf,
  norm: str = "linf",
  num_steps: int = 100,
  alpha_init: float = 1.0,
  alpha_final: float = 0.01,
  gamma_init: float = 0.05,
  gamma_final: float = 0.001,
  targets: Labels | None = None,
) -> AttackResult:
  """The Fast Minimum-Norm attack (Pintor et al., arXiv:2102.12827, algorithm 1), from the clean image.

  Each step moves by alpha along the gradient of the margin, scaled to unit L2 norm. The point is then projected onto
  the ball around the image and clipped to [0, 1]. Before the first adversarial, the radius follows the distance to the
  linearised boundary (not for "l0"); after that, it is multiplied by 1 - gamma if the point is adversarial, else by
  1 + gamma. Alpha and gamma decrease on a cosine schedule. One gradient per step. In adversarial-library it is `fmn`,
  in Foolbox `L2FMNAttack` and the like, with num_steps as `steps`.

  Args:
    key: a typed key or one per image [batch]; not used, because nothing is random.
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    epsilon: perturbations longer than this do not count; inf: all count. May be traced.
    norm: "linf", "l2", "l1", or "l0", the number of components that differ: a pixel of three channels counts up to 3.
    num_steps: gradient steps.
    alpha_init: length of the first step, in L2.
    alpha_final: final value of alpha.
    gamma_init: initial relative change of the radius per step.
    gamma_final: final value of gamma.
    targets: int [batch], target classes, never the image's label; an adversarial is then a point whose prediction
      is the target.

  Returns:
    AttackResult: the nearest adversarial found, if its distance is at most epsilon, else the clean image unchanged;
    also unchanged if the model is wrong on it (with targets: if it predicts the target). `surviving_steps`: the
    number of iterates that the model gets right.

  Raises:
    ValueError: an argument outside the values listed here.
  """
  counts, length, steepest = norm == threat_model.L0, threat_model.length_of(norm), threat_model.get_norm("l2").steepest
  shrink = _keep_largest if counts else threat_model.get_norm(norm).shrink
  farthest = length(jnp.maximum(images, 1.0 - images))

  margin_of = losses.surrogate("margin", logits_fn, images, labels, targets)

  def total_margin(points):
    logits = logits_fn(points)
    margin = margin_of(logits)
    return jnp.sum(margin), (margin, logits)

  def resize(radius, success, share, nearest, distance, margin, gradient):
    if counts:
      radius = _count(radius, success, share, nearest)
    else:
      slope = threat_model.get_norm(threat_model.DUAL[norm]).length(gradient)
      boundary = distance + jnp.abs(margin) / jnp.maximum(slope, _TINY)
      radius = _radius(radius, success, share, nearest, boundary)
    return jnp.minimum(radius, farthest)

  def step(index, carry):
    points, radius, nearest = carry
    raw, (margin, logits) = jax.grad(total_margin, has_aux=True)(points)
    right, distance, gradient = losses.is_correct(logits, labels), length(points - images), threat_model.numbers(raw)
    success = losses.is_adversarial(logits, labels, targets)
    nearest = _minimum_norm.update(nearest, points, success, distance)
    alpha = _minimum_norm.cosine(index, num_steps, alpha_init, alpha_final, images.dtype)
    gamma = _minimum_norm.cosine(index, num_steps, gamma_init, gamma_final, images.dtype)
    radius = resize(radius, success, gamma, nearest, distance, margin, gradient)
    delta = shrink(points - images + alpha * steepest(gradient), radius if counts else per_image(radius))
    return jnp.clip(images + delta, 0.0, 1.0), radius, _minimum_norm.count(nearest, right, raw)

  first = 0.0 * farthest + (1.0 if counts else 0.0)
  nearest = _minimum_norm.begin(logits_fn, images, labels, targets)
  nearest = lax.fori_loop(0, num_steps, step, (images, first, nearest))[-1]
  return _minimum_norm.finish(logits_fn, labels, images, nearest, nearest.distance, epsilon, targets)
