"""The loss of a pair: one number per instance from the natural image, its variants and their local weights.

A pair's loss is the weighted sum over its members x' (the natural image x and its variants) of one member's loss:

  ce      l(x')                                              LRAT (arXiv:2106.15776), adversarial training
  trades  l(x) + beta KL(p(x) || p(x'))                      TRADES (arXiv:1901.08573, eq. 5)
  mart    bce(x') + beta KL(p(x) || p(x')) (1 - p_y(x))      MART (Wang et al., ICLR 2020)

where l is the cross-entropy, and bce is l plus a margin term. If a label is a distribution over the classes, l uses it;
everything else uses the true class y, its most likely one. With the weights of adversarial training (variants share C,
the natural image has none) these are the papers' own losses. With local weights, the weight that a variant gives up
goes to the natural image, whose divergence from itself is 0.

Logit pairing (RAMP, arXiv:2402.06827) is an additional term that compares the variants with one another.
"""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from lrat_jax.attacks.losses import cross_entropy, is_correct, kl, true_classes
from lrat_jax.core.typing import AnyLabels, AxisName, Labels, Logits, PerImage, PerVariant, VariantLogits

# (logits of the member [batch, classes], natural logits or None, labels, beta) -> losses [batch], in nats
MemberLoss = Callable[[Array, Array | None, Array, float], Array]

# MART's own constants, which keep the argument of its logarithm and its weight above 0.
_MART_LOG, _MART_WEIGHT = 1.0001, 1.0000001


def _cross_entropy(member: Array, natural: Array | None, labels: Array, beta: float) -> Array:
  return cross_entropy(member, labels)


def _trades(member: Array, natural: Array | None, labels: Array, beta: float) -> Array:
  return cross_entropy(natural, labels) + beta * kl(member, natural)


def _mart(member: Array, natural: Array | None, labels: Array, beta: float) -> Array:
  classes = true_classes(labels)
  true = jax.nn.one_hot(classes, member.shape[-1], dtype=bool)
  best_other = jnp.max(jnp.where(true, 0.0, jax.nn.softmax(member)), axis=-1)
  boosted = cross_entropy(member, labels) - jnp.log(_MART_LOG - best_other)
  return boosted + beta * kl(member, natural) * (_MART_WEIGHT - jnp.exp(-cross_entropy(natural, classes)))


_MEMBER_LOSSES: dict[str, MemberLoss] = {"ce": _cross_entropy, "trades": _trades, "mart": _mart}
OBJECTIVES = tuple(_MEMBER_LOSSES)


def compares_with_natural(objective: str) -> bool:
  """Whether a variant's loss needs the prediction on the natural image, even if that image has no weight."""
  return objective != "ce"


def pair_losses(
  objective: str,
  natural_logits: Logits | None,
  adversarial_logits: VariantLogits,
  labels: AnyLabels,
  natural_weights: PerImage,
  adversarial_weights: PerVariant,
  *,
  beta: float = 0.0,
) -> PerImage:
  """omega_i0 L(x_i) + sum_j omega_ij L(x~_ij), where L is the objective's loss of a member.

  Gradients flow through natural and adversarial logits alike, as in the papers' code.

  Args:
    objective: "ce", "trades" or "mart".
    natural_logits: float [batch, classes]; None if every natural weight is 0 and the objective is "ce".
    adversarial_logits: float [batch, m, classes].
    labels: int [batch], or float [batch, classes], distributions over the classes.
    natural_weights: float [batch].
    adversarial_weights: float [batch, m].
    beta: weight of the divergence from the natural prediction in "trades" and "mart"; 0 or more.

  Returns:
    float [batch], the pairs' losses in nats, before global weights and the mean.

  Raises:
    ValueError: an unknown objective, with the choices.
  """
  if objective not in _MEMBER_LOSSES:
    raise ValueError(f"objective={objective!r} is unknown; choose from {list(OBJECTIVES)}.")
  member_loss = _MEMBER_LOSSES[objective]
  losses = [
    adversarial_weights[:, j] * member_loss(adversarial_logits[:, j], natural_logits, labels, beta)
    for j in range(adversarial_logits.shape[1])
  ]
  if natural_logits is not None:
    losses.append(natural_weights * member_loss(natural_logits, natural_logits, labels, beta))
  return functools.reduce(operator.add, losses)


def logit_pairing(
  adversarial_logits: VariantLogits, labels: Labels, source: int, *, axis_name: AxisName | None = None
) -> PerImage:
  """The divergence of the predictions on other variants from the one on a source variant, if that one is correct.

  RAMP (arXiv:2402.06827, section 4.2): the sum of KL(p(x~_iq) || p(x~_ir)) over the images whose variant q, the source,
  is classified correctly, divided by their number. With more than two variants it is the mean over those besides the
  source. Gradients flow through both predictions, as in the paper's code, but not through the choice of the images.

  Args:
    adversarial_logits: float [batch, m, classes], m of 2 or more.
    labels: int [batch].
    source: q, the number of a variant.
    axis_name: mesh axes over which the batch is sharded, so that the device count changes nothing; None for one device.

  Returns:
    float [batch] in nats, whose mean over the global batch is the paper's loss.
  """
  reference = adversarial_logits[:, source]
  others = [j for j in range(adversarial_logits.shape[1]) if j != source]
  divergences = jnp.mean(jnp.stack([kl(adversarial_logits[:, j], reference) for j in others]), axis=0)
  right = is_correct(reference, labels)
  share = jnp.mean(right.astype(divergences.dtype))
  share = share if axis_name is None else jax.lax.pmean(share, axis_name)
  return jnp.where(right, divergences, 0.0) / jnp.where(share > 0, share, 1.0)
