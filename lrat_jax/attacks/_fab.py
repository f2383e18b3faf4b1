"""FAB: short steps along the decision boundary, biased towards the clean image."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lrat_jax.attacks import _boundaries, _hyperplane, losses, threat_model
from lrat_jax.attacks._entry import AttackResult, entry, finished
from lrat_jax.attacks.threat_model import per_image
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn, Rank, Scalar

# Prevents 0 / 0 in the bias.
_TINY_STEP = 1e-8
# Distance of random starts from the image, as a share of epsilon.
_START_SHARE = 0.5


class _State(NamedTuple):
  """The state of the loop: arrays [batch, ...]."""

  points: Array  # where the next gradient is taken
  adversarial: Array  # the result: the clean image until an adversarial is found
  distance: Array  # its distance; inf before the first adversarial
  fooled: Array  # bool: whether an adversarial inside the ball has been found
  survived: Array  # int32: number of points so far that the model gets right
  broken: Array  # int32: number of gradients so far with a NaN or infinite entry


def _advance(points, images, values, gradients, norm: str, alpha_max: float, overshoot: float) -> Array:
  """The next points: steps past the linearised boundary from the points and from the images, mixed; in [0, 1]."""
  step = _hyperplane.step_onto(points, gradients, values, norm)
  values_of_images = values + jnp.sum(gradients * (images - points), axis=(1, 2, 3))
  step_of_images = _hyperplane.step_onto(images, gradients, values_of_images, norm)
  length = threat_model.get_norm(norm).length
  near, far = (jnp.maximum(length(delta), _TINY_STEP) for delta in (step, step_of_images))
  alpha = per_image(jnp.minimum(near / (near + far), alpha_max))
  mixed = (1.0 - alpha) * (points + overshoot * step) + alpha * (images + overshoot * step_of_images)
  return jnp.clip(mixed, 0.0, 1.0)


def _start(restart: int | Array, keys: Array, images: Array, radii: float | Array, norm: str) -> Array:
  """The start: the images for restart 0, else random points at `_START_SHARE` of the radii, clipped to [0, 1]."""
  if isinstance(restart, int) and restart == 0:
    return images
  ball = threat_model.get_norm(norm)
  draw = lambda key: ball.sample(jax.random.fold_in(key, restart), images.shape[1:])
  noise = jax.vmap(draw)(keys).astype(images.dtype)
  return jnp.clip(images + _START_SHARE * radii * noise / per_image(ball.length(noise)), 0.0, 1.0)


def _make_step(logits_fn, images, labels, heading, targets, epsilon, norm, shorten, alpha_max, overshoot, backward):
  """The body of the loop: (index, state) -> (index + 1, state). `heading`: each image's target class, or None."""
  length = threat_model.get_norm(norm).length

  def step(carry: tuple[int | Array, _State]) -> tuple[int | Array, _State]:
    index, state = carry
    if heading is None:
      boundary, logits = _boundaries.nearest(logits_fn, state.points, labels, norm)
    else:
      boundary, logits = _boundaries.targeted(logits_fn, state.points, labels if targets is None else None, heading)
    points = _advance(state.points, images, boundary.values, boundary.gradients, norm, alpha_max, overshoot)
    right = losses.is_correct(logits, labels)
    success = losses.is_adversarial(logits_fn(points), labels, targets)
    distance = length(points - images)
    wanted = distance < state.distance if shorten else ~state.fooled
    found = success & (distance <= epsilon) & wanted
    return index + 1, _State(
      jnp.where(per_image(success), images + backward * (points - images), points),
      jnp.where(per_image(found), points, state.adversarial),
      jnp.where(found, distance, state.distance),
      state.fooled | found,
      state.survived + (right & ~state.fooled).astype(jnp.int32),
      state.broken + boundary.broken.astype(jnp.int32),
    )

  return step


@entry(
  num_steps=0, num_restarts=1, shorten=bool, target_rank=1,
  alpha_max="[0, 1]", overshoot="[1, 10]", backward="[0, 1]",
)  # fmt: skip
def fab(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar = math.inf,
  norm: str = "linf",
  shorten: bool | None = None,
  num_steps: int = 100,
  num_restarts: int = 1,
  targets: Labels | None = None,
  target_rank: Rank | None = None,
  alpha_max: float = 0.1,
  overshoot: float = 1.05,
  backward: float = 0.9,
) -> AttackResult:
  """The Fast Adaptive Boundary attack (Croce & Hein, arXiv:1907.02044), with the constants of AutoAttack.

  Each step linearises z_target - z_label, finds the shortest steps from the point and from the clean image onto that
  boundary inside [0, 1], goes slightly past it from both, and takes a convex combination of the two. A point that fools
  the model is moved back towards the image. One gradient and one forward pass per step. In other libraries epsilon is
  `eps`, num_steps `n_iter` or `steps`, overshoot `eta`, backward `beta`.

  With an epsilon, an image is finished at its first adversarial inside the ball, and the loop ends when all are. This
  is all that AutoAttack needs: the original continues, but breaks the same images. Without an epsilon, or with
  `shorten`, the nearest adversarial of all steps and restarts is returned, as by any minimum-norm attack.

  Args:
    key: a typed key or one per image [batch]; only the starts after the first are random.
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    epsilon: the largest distance of an adversarial that counts; inf: all count. May be traced.
    norm: "linf", "l2" or "l1".
    shorten: whether to continue after an image's first adversarial; None: only if epsilon is inf.
    num_steps: steps from each start.
    num_restarts: number of starts. The first is the image itself, the others are at a distance of epsilon / 2; with
      `shorten`, of half the shortest distance so far, if that is less.
    targets: int [batch], target classes, never the image's label: the boundary is that of z_t - max_{k != t} z_k, and
      an adversarial is a point whose prediction is the target.
    target_rank: instead of targets, the target class by its rank among the wrong classes on the clean image, 1 = the
      most likely; may be traced. It only sets the direction: any wrong prediction is a success, as in AutoAttack.
      With neither, each step uses the class with the nearest boundary (untargeted FAB), with one gradient per class.
    alpha_max: maximum weight of the step from the clean image in the combination.
    overshoot: factor on both steps, so that they go past the boundary.
    backward: share of its distance that an adversarial keeps when it is moved back.

  Returns:
    AttackResult: an adversarial inside the ball, else the clean image unchanged; also unchanged if the model is wrong
    on it (with targets: if it predicts the target). `surviving_steps`: the number of points where a gradient was taken
    and the model was right, until the first adversarial in the ball.

  Raises:
    ValueError: an argument outside the values listed here.
  """
  if shorten is None:
    shorten = not isinstance(epsilon, jax.core.Tracer) and bool(epsilon == math.inf)
  clean_logits = logits_fn(images)
  heading = losses.choose_targets(clean_logits, labels, targets, target_rank)
  fooled, zeros = losses.is_adversarial(clean_logits, labels, targets), 0.0 * images[:, 0, 0, 0]
  start = _State(images, images, jnp.where(fooled, zeros, jnp.inf), fooled, 0 * labels, 0 * labels)
  step = _make_step(logits_fn, images, labels, heading, targets, epsilon, norm, shorten, alpha_max, overshoot, backward)
  done = lambda state: jnp.all(state.distance == 0 if shorten else state.fooled)
  unfinished = lambda carry: (carry[0] < num_steps) & ~done(carry[1])
  widest = threat_model.get_norm(norm).diameter(images.shape[1:])

  def run(restart, state):
    radii = per_image(jnp.minimum(jnp.minimum(epsilon, widest), state.distance)) if shorten else epsilon
    return lax.while_loop(unfinished, step, (0, state._replace(points=_start(restart, key, images, radii, norm))))[1]

  state = run(0, start)
  if num_restarts > 1:
    state = lax.fori_loop(1, num_restarts, run, state)
  return finished(logits_fn, labels, state.adversarial, state.survived, state.broken, targets, state.distance)
