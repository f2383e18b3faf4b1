"""Carlini and Wagner's L2 attack: for each image the smallest perturbation that fools the model."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from lrat_jax.attacks import losses, threat_model
from lrat_jax.attacks._entry import AttackResult, entry, finished
from lrat_jax.attacks.threat_model import per_image
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn, Scalar

# Keeps images at 0 and 1 inside the range of tanh.
_SHRINK = 0.999999
# The factor on a constant that was too small, while no large enough one is known.
_GROWTH = 10.0
# Far beyond use, and far from overflow.
_LENGTHS = "(0, 1e6]"


class _Found(NamedTuple):
  """The smallest perturbation so far: [batch, ...] arrays."""

  images: Array
  distance: Array  # inf before the first
  survived: Array  # int32: iterates that the model gets right


def _to_image(free: Array) -> Array:
  return 0.5 * (jnp.tanh(free) + 1.0)


def _descend(
  logits_fn, images, labels, targets, constants, found: _Found, num_steps: int, learning_rate: float, confidence
):
  """Adam from the clean images with these constants [batch]: (found, which images fell in this run)."""
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
    free, moments, found, fell = carry
    gradient, (points, logits, margin) = jax.grad(objective, has_aux=True)(free)
    right = losses.is_correct(logits, labels)
    success = losses.is_adversarial(logits, labels, targets) & (margin >= confidence)
    distance = length(points - images)
    nearer = success & (distance < found.distance)
    found = _Found(
      jnp.where(per_image(nearer), points, found.images),
      jnp.where(nearer, distance, found.distance),
      found.survived + right.astype(jnp.int32),
    )
    update, moments = optimizer.update(threat_model.numbers(gradient), moments)
    return free + update, moments, found, fell | success

  # Carries that vary over devices as the images do, under shard_map.
  moments = jax.tree.map(lambda x: x + 0 * free if x.shape == free.shape else x, optimizer.init(free))
  carry = lax.fori_loop(0, num_steps, step, (free, moments, found, labels != labels))
  return carry[2], carry[3]


@entry(binary_search_steps=1, num_steps=0, learning_rate=_LENGTHS, initial_const=_LENGTHS, confidence="[0, 1e6]")
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
  A search over const, for each image, halves the interval between one that was too small and one that was enough.
  Each step takes one gradient. In torchattacks it is `CW`, with num_steps as `steps`, learning_rate as `lr` and
  confidence as `kappa`; in Foolbox `L2CarliniWagnerAttack`, with num_steps as `steps` and learning_rate as `stepsize`.

  Args:
    key: a typed key or one per image [batch]; nothing here is drawn.
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    epsilon: perturbations longer than this do not count; inf: all count. May be traced.
    norm: "l2", the only one.
    binary_search_steps: values of const to try, 1 or more.
    num_steps: steps of Adam for each.
    learning_rate: Adam's, in units of w.
    initial_const: the first const.
    confidence: least margin, in logits, by which the model must be fooled.
    targets: int [batch], classes to head for, none the image's label: the margin is z_t - max_{k != t} z_k, and an
      adversarial is a point whose prediction is the target.

  Returns:
    AttackResult: the nearest adversarial found, if its distance is at most epsilon, else the clean image unchanged;
    also unchanged where the model is wrong on it (with targets: where it predicts the target).
    `surviving_steps`: of all binary_search_steps * num_steps iterates, those that the model gets right.

  Raises:
    ValueError: an argument outside what is listed here.
  """
  if norm != "l2":
    raise ValueError(f"norm={norm!r} is not what this attack minimises; choose from ['l2'].")

  def search(_, carry):
    constants, low, high, found = carry
    found, fell = _descend(logits_fn, images, labels, targets, constants, found, num_steps, learning_rate, confidence)
    high = jnp.where(fell, jnp.minimum(high, constants), high)
    low = jnp.where(fell, low, jnp.maximum(low, constants))
    constants = jnp.where(jnp.isinf(high), _GROWTH * constants, 0.5 * (low + high))
    return constants, low, high, found

  done = losses.is_adversarial(logits_fn(images), labels, targets)
  zeros = 0.0 * images[:, 0, 0, 0]
  found = _Found(images, jnp.where(done, zeros, jnp.inf), 0 * labels.astype(jnp.int32))
  carry = (zeros + initial_const, zeros, zeros + jnp.inf, found)
  found = lax.fori_loop(0, binary_search_steps, search, carry)[-1]
  counted = found.distance <= epsilon
  survived = jnp.where(done, 0, found.survived)
  return finished(logits_fn, labels, jnp.where(per_image(counted), found.images, images), survived, targets=targets)
