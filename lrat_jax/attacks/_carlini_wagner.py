"""Carlini and Wagner's L2 attack: for each image the smallest perturbation that fools the model."""

import math

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from lrat_jax.attacks import _minimum_norm, losses, threat_model
from lrat_jax.attacks._entry import AttackResult, entry
from lrat_jax.attacks._minimum_norm import Nearest
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn, Scalar

# Keeps pixels of 0 and 1 inside the range of tanh.
_SHRINK = 0.999999
# Far above useful values, and far below overflow.
_LENGTHS = "(0, 1e6]"


def _to_image(free: Array) -> Array:
  return 0.5 * (jnp.tanh(free) + 1.0)


def _descend(
  logits_fn, images, labels, targets, constants, nearest: Nearest, num_steps: int, learning_rate, confidence
):
  """Runs Adam from the clean images with these constants [batch]; returns (nearest, success in this run [batch])."""
  optimizer = optax.adam(learning_rate)
  length = threat_model.get_norm("l2").length
  free = jnp.arctanh((2.0 * images - 1.0) * _SHRINK)

  def objective(free):
    points = _to_image(free)
    logits = logits_fn(points)
    margin = losses.margin(logits, labels) if targets is None else -losses.margin(logits, targets)
    distances = jnp.sum(jnp.square(points - images), axis=(1, 2, 3))
    return jnp.sum(distances + constants * jnp.maximum(confidence - margin, 0.0)), (points, logits, margin)

  def step(_, carry):
    free, moments, nearest, fell = carry
    gradient, (points, logits, margin) = jax.grad(objective, has_aux=True)(free)
    right = losses.is_correct(logits, labels)
    success = losses.is_adversarial(logits, labels, targets) & (margin >= confidence)
    nearest = _minimum_norm.update(nearest, points, success, length(points - images))
    update, moments = optimizer.update(threat_model.numbers(gradient), moments)
    return free + update, moments, _minimum_norm.count(nearest, right, gradient), fell | success

  # Under shard_map, the loop carry must vary over devices like the images.
  moments = jax.tree.map(lambda x: x + 0 * free if x.shape == free.shape else x, optimizer.init(free))
  carry = lax.fori_loop(0, num_steps, step, (free, moments, nearest, labels != labels))
  return carry[2], carry[3]


@entry(
  norm=("l2",), binary_search_steps=1, num_steps=0, learning_rate=_LENGTHS, initial_const=_LENGTHS,
  confidence="[0, 1e6]",
)  # fmt: skip
def carlini_wagner(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar = math.inf,
  norm: str = "l2",
  binary_search_steps: int = 9,
  num_steps: int = 1000,
  learning_rate: float = 0.01,
  initial_const: float = 1e-3,
  confidence: float = 0.0,
  targets: Labels | None = None,
) -> AttackResult:
  """The minimum-norm L2 attack (Carlini & Wagner, arXiv:1608.04644, sections V and VI).

  Adam on w, with x' = (tanh w + 1) / 2, minimises |x' - x|^2 + const * max(z_y - max_{k != y} z_k + confidence, 0).
  A binary search finds const for each image, between a value that was too small and one that was large enough.
  Each step takes one gradient. In torchattacks it is `CW`, with num_steps as `steps`, learning_rate as `lr` and
  confidence as `kappa`; in Foolbox `L2CarliniWagnerAttack`, with num_steps as `steps` and learning_rate as `stepsize`.

  Args:
    key: a typed key or one per image [batch]; not used, because nothing is random.
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    epsilon: perturbations longer than this do not count; inf: all count. May be traced.
    norm: "l2", the only choice.
    binary_search_steps: number of values of const to try, 1 or more.
    num_steps: steps of Adam for each value.
    learning_rate: of Adam, in units of w.
    initial_const: the first value of const.
    confidence: minimum margin of an adversarial, in logits.
    targets: int [batch], target classes, never the image's label: the margin is z_t - max_{k != t} z_k, and an
      adversarial is a point whose prediction is the target.

  Returns:
    AttackResult: the nearest adversarial found, if its distance is at most epsilon, else the clean image unchanged;
    also unchanged if the model is wrong on it (with targets: if it predicts the target).
    `surviving_steps`: the number of the binary_search_steps * num_steps iterates that the model gets right.

  Raises:
    ValueError: an argument outside the values listed here.
  """
  descend = lambda constants, nearest: _descend(
    logits_fn, images, labels, targets, constants, nearest, num_steps, learning_rate, confidence
  )
  nearest = _minimum_norm.begin(logits_fn, images, labels, targets)
  nearest = _minimum_norm.search_constants(descend, nearest, initial_const, binary_search_steps)
  return _minimum_norm.finish(logits_fn, labels, images, nearest, nearest.distance, epsilon, targets)
