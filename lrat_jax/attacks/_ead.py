"""EAD: the elastic-net attack, which finds perturbations that are small in L1."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from lrat_jax.attacks import _minimum_norm, losses, threat_model
from lrat_jax.attacks._entry import AttackResult, entry
from lrat_jax.attacks._minimum_norm import Nearest
from lrat_jax.core.arguments import check_choice
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn, Scalar

DECISION_RULES = ("en", "l1")
# Far above useful values, and far below overflow.
_LENGTHS = "(0, 1e6]"


def _shrink(points: Array, images: Array, threshold: float) -> Array:
  """Moves each component towards that of the image by `threshold`, or onto it if it is closer; in [0, 1]."""
  delta = points - images
  moved = jnp.clip(points - jnp.sign(delta) * threshold, 0.0, 1.0)
  return jnp.where(jnp.abs(delta) > threshold, moved, images)


def _descend(
  logits_fn, images, labels, targets, constants, nearest, measure, num_steps, learning_rate, beta, confidence
):
  """Runs FISTA from the clean images with these constants [batch]; returns (nearest, success in this run [batch])."""
  margin_of = losses.surrogate("margin", logits_fn, images, labels, targets)

  def objective(points):
    distances = jnp.sum(jnp.square(points - images), axis=(1, 2, 3))
    return jnp.sum(distances + constants * jnp.maximum(confidence - margin_of(logits_fn(points)), 0.0))

  def step(index, carry):
    points, momentum, nearest, fell = carry
    number = jnp.asarray(index, images.dtype)
    gradient = jax.grad(objective)(momentum)
    pace = learning_rate * jnp.sqrt(1.0 - number / num_steps)
    ahead = _shrink(momentum - pace * threat_model.numbers(gradient), images, beta)
    momentum = ahead + number / (number + 3.0) * (ahead - points)
    logits = logits_fn(ahead)
    success = losses.is_adversarial(logits, labels, targets) & (margin_of(logits) >= confidence)
    nearest = _minimum_norm.update(nearest, ahead, success, measure(ahead - images))
    nearest = _minimum_norm.count(nearest, losses.is_correct(logits, labels), gradient)
    return ahead, momentum, nearest, fell | success

  return lax.fori_loop(0, num_steps, step, (images, images, nearest, labels != labels))[2:]


@entry(
  norm=("l1",), binary_search_steps=1, num_steps=0, learning_rate=_LENGTHS, initial_const=_LENGTHS,
  beta="[0, 1]", confidence="[0, 1e6]",
)  # fmt: skip
def ead(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar = math.inf,
  norm: str = "l1",
  decision_rule: str = "en",
  binary_search_steps: int = 9,
  num_steps: int = 1000,
  learning_rate: float = 0.01,
  initial_const: float = 1e-3,
  beta: float = 0.01,
  confidence: float = 0.0,
  targets: Labels | None = None,
) -> AttackResult:
  """The elastic-net attack (Chen et al., arXiv:1709.04114, algorithm 1).

  FISTA minimises |x' - x|_2^2 + beta |x' - x|_1 + const * max(z_y - max_{k != y} z_k + confidence, 0), with const found
  for each image as in `carlini_wagner`. The step size decreases with the square root of the share of steps left. One
  gradient and one forward pass per step. In Foolbox it is `EADAttack`, with num_steps as `steps`, learning_rate as
  `initial_stepsize` and beta as `regularization`; in torchattacks `EADEN` and `EADL1`.

  Args:
    key: a typed key or one per image [batch]; not used, because nothing is random.
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    epsilon: perturbations longer than this, in L1, do not count; inf: all count. May be traced.
    norm: "l1", the norm of the distances; the only choice.
    decision_rule: which adversarial is the nearest: by "en", |x' - x|_2^2 + beta |x' - x|_1, or by "l1", |x' - x|_1.
    binary_search_steps: number of values of const to try, 1 or more.
    num_steps: steps for each value.
    learning_rate: the initial step size, a factor of the gradient.
    initial_const: the first value of const.
    beta: weight of the L1 term, and the distance by which each step moves each component towards the image.
    confidence: minimum margin of an adversarial, in logits.
    targets: int [batch], target classes, never the image's label; the margin is then z_t - max_{k != t} z_k, and an
      adversarial is a point whose prediction is the target.

  Returns:
    AttackResult: the nearest adversarial found, if its L1 distance is at most epsilon, else the clean image unchanged;
    also unchanged if the model is wrong on it (with targets: if it predicts the target). `surviving_steps`: the number
    of the binary_search_steps * num_steps iterates that the model gets right.

  Raises:
    ValueError: an argument outside the values listed here.
  """
  check_choice(decision_rule, "decision_rule", DECISION_RULES)
  length = threat_model.get_norm(norm).length
  elastic = lambda delta: jnp.sum(jnp.square(delta), axis=(1, 2, 3)) + beta * length(delta)
  measure = elastic if decision_rule == "en" else length

  def descend(constants: Array, nearest: Nearest) -> tuple[Nearest, Array]:
    return _descend(
      logits_fn, images, labels, targets, constants, nearest, measure, num_steps, learning_rate, beta, confidence
    )

  nearest = _minimum_norm.begin(logits_fn, images, labels, targets)
  nearest = _minimum_norm.search_constants(descend, nearest, initial_const, binary_search_steps)
  distance = jnp.where(jnp.isfinite(nearest.distance), length(nearest.images - images), jnp.inf)
  return _minimum_norm.finish(logits_fn, labels, images, nearest, distance, epsilon, targets)
