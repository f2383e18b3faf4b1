"""DDN: steps on a sphere around the image that shrinks while the model is wrong, and grows while it is right."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from lrat_jax.attacks import _minimum_norm, losses, threat_model
from lrat_jax.attacks._entry import AttackResult, entry
from lrat_jax.attacks.threat_model import per_image
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn, Scalar

# Length of the first step and of the last, as in the paper.
_FIRST_STEP, _LAST_STEP = 1.0, 0.01
# Prevents 0 / 0 in the projection onto the sphere.
_TINY = 1e-12


@entry(norm=("l2",), num_steps=0, gamma="[0, 1)", init_norm="(0, 1e6]")
def ddn(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar = math.inf,
  norm: str = "l2",
  num_steps: int = 100,
  gamma: float = 0.05,
  init_norm: float = 1.0,
  targets: Labels | None = None,
) -> AttackResult:
  """Decoupling Direction and Norm, a minimum-norm L2 attack (Rony et al., arXiv:1811.09600, algorithm 1).

  Each step moves along the gradient of the cross-entropy, by a length that decreases from 1 to 0.01 on a cosine
  schedule. The point is then projected onto a sphere around the image and clipped to [0, 1]. The sphere's radius is
  multiplied by 1 - gamma if the point is adversarial, else by 1 + gamma. One gradient per step. In adversarial-library
  it is `ddn`, in Foolbox `DDNAttack`, both with num_steps as `steps`. Pixels are not rounded to 256 levels;
  adversarial-library rounds them unless levels=None.

  Args:
    key: a typed key or one per image [batch]; not used, because nothing is random.
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    epsilon: perturbations longer than this do not count; inf: all count. May be traced.
    norm: "l2", the only choice.
    num_steps: gradient steps.
    gamma: relative change of the radius at each step, in [0, 1).
    init_norm: the initial radius.
    targets: int [batch], target classes, never the image's label; an adversarial is then a point whose prediction
      is the target.

  Returns:
    AttackResult: the nearest adversarial found, if its distance is at most epsilon, else the clean image unchanged;
    also unchanged if the model is wrong on it (with targets: if it predicts the target). `surviving_steps`: the
    number of iterates that the model gets right.

  Raises:
    ValueError: an argument outside the values listed here.
  """
  ball = threat_model.get_norm(norm)
  farthest = ball.length(jnp.maximum(images, 1.0 - images))

  cross_entropy = losses.surrogate("ce", logits_fn, images, labels, targets)

  def total_loss(points):
    logits = logits_fn(points)
    return jnp.sum(cross_entropy(logits)), logits

  def step(index, carry):
    points, radius, nearest = carry
    gradient, logits = jax.grad(total_loss, has_aux=True)(points)
    right = losses.is_correct(logits, labels)
    success = losses.is_adversarial(logits, labels, targets)
    nearest = _minimum_norm.update(nearest, points, success, ball.length(points - images))
    step_size = _minimum_norm.cosine(index, num_steps, _FIRST_STEP, _LAST_STEP, images.dtype)
    delta = points - images + step_size * ball.steepest(threat_model.numbers(gradient))
    radius = jnp.minimum(jnp.where(success, 1.0 - gamma, 1.0 + gamma) * radius, farthest)
    delta *= per_image(radius / jnp.maximum(ball.length(delta), _TINY))
    return jnp.clip(images + delta, 0.0, 1.0), radius, _minimum_norm.count(nearest, right, gradient)

  nearest = _minimum_norm.begin(logits_fn, images, labels, targets)
  start = images, 0.0 * farthest + init_norm, nearest
  nearest = lax.fori_loop(0, num_steps, step, start)[-1]
  return _minimum_norm.finish(logits_fn, labels, images, nearest, nearest.distance, epsilon, targets)
