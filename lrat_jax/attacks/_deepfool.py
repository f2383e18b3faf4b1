"""DeepFool: repeated steps onto the nearest boundary of the linearised model."""

import math

import jax.numpy as jnp
from jax import lax

from lrat_jax.attacks import _boundaries, _minimum_norm, losses, threat_model
from lrat_jax.attacks._entry import AttackResult, entry
from lrat_jax.attacks._minimum_norm import Nearest
from lrat_jax.attacks.threat_model import per_image
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn, Scalar

# Added to each step's length, as in the original.
_FURTHER = 1e-4
_TINY = 1e-12


def _candidates(logits_fn: LogitsFn, images, labels, count: int):
  """The most likely wrong classes of the clean images, int [batch, count - 1], or all if there are fewer."""
  logits = logits_fn(images)
  num_classes = logits.shape[-1]
  label_first = jnp.where(jnp.arange(num_classes) == labels[:, None], jnp.inf, logits)
  return lax.top_k(label_first, min(count, num_classes))[1][:, 1:]


@entry(norm=("l2", "linf"), num_steps=0, candidates=2, overshoot="[0, 10]")
def deepfool(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar = math.inf,
  norm: str = "l2",
  num_steps: int = 50,
  candidates: int = 10,
  overshoot: float = 0.02,
) -> AttackResult:
  """DeepFool (Moosavi-Dezfooli et al., arXiv:1511.04599, algorithm 2, and its section 2.4 for linf).

  Each step moves from the last point onto the nearest boundary of the linearised model. The perturbation is the sum of
  all steps times 1 + overshoot; the image is clipped to [0, 1]. An image is finished at its first adversarial, and the
  loop ends when all are. Each step takes one gradient per candidate except the label, in small groups. In Foolbox it is
  `L2DeepFoolAttack` and `LinfDeepFoolAttack`, with num_steps as `steps`; in adversarial-library `df`.

  It is fast, but its perturbations are not the smallest: `ddn`, `fmn` and `fab` find shorter ones.

  Args:
    key: a typed key or one per image [batch]; not used, because nothing is random.
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    epsilon: perturbations longer than this do not count; inf: all count. May be traced.
    norm: "l2" or "linf".
    num_steps: the maximum number of steps.
    candidates: number of most likely classes to consider, including the label, 2 or more.
    overshoot: distance past the boundary, as a share of the perturbation.

  Returns:
    AttackResult: the adversarial found, if its distance is at most epsilon, else the clean image unchanged; also
    unchanged if the model is wrong on it. `surviving_steps`: the number of iterates that the model gets right.

  Raises:
    ValueError: an argument outside the values listed here.
  """
  ball, classes = threat_model.get_norm(norm), _candidates(logits_fn, images, labels, candidates)
  slope = threat_model.get_norm(threat_model.DUAL[norm]).length

  def found(nearest: Nearest, points, logits) -> Nearest:
    wrong = losses.is_adversarial(logits, labels)
    return _minimum_norm.update(nearest, points, wrong & jnp.isinf(nearest.distance), ball.length(points - images))

  def step(carry):
    index, points, total, nearest = carry
    boundary, logits = _boundaries.nearest(logits_fn, points, labels, norm, classes)
    nearest = found(nearest, points, logits)
    right, goes_on = losses.is_correct(logits, labels), jnp.isinf(nearest.distance)
    distance = _FURTHER + jnp.abs(boundary.values) / jnp.maximum(slope(boundary.gradients), _TINY)
    total += per_image(jnp.where(goes_on, distance, 0.0)) * ball.steepest(boundary.gradients)
    ahead = jnp.clip(images + (1.0 + overshoot) * total, 0.0, 1.0)
    nearest = nearest._replace(
      survived=nearest.survived + right.astype(jnp.int32), broken=nearest.broken + boundary.broken.astype(jnp.int32)
    )
    return index + 1, jnp.where(per_image(goes_on), ahead, points), total, nearest

  unfinished = lambda carry: (carry[0] < num_steps) & jnp.any(jnp.isinf(carry[3].distance))
  nearest = _minimum_norm.begin(logits_fn, images, labels)
  _, points, _, nearest = lax.while_loop(unfinished, step, (0, images, 0.0 * images, nearest))
  nearest = found(nearest, points, logits_fn(points))
  return _minimum_norm.finish(logits_fn, labels, images, nearest, nearest.distance, epsilon)
