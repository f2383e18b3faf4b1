"""The losses that attacks maximise, per example, as functions of logits; higher = closer to fooling the model.

Every loss takes logits [batch, classes] and labels [batch] in [0, classes) and returns [batch]. Cross-entropy also
takes labels that are distributions over the classes [batch, classes]; the other losses use only the true class.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lrat_jax.core.arguments import check_choice
from lrat_jax.core.typing import Answers, AnyLabels, Distributions, Images, Labels, Logits, LogitsFn, PerImage, Rank

# The margin beyond which the `cw` loss of GAIRAT and MAIL is constant; their "CW-infinity" is PGD on that loss.
CW_CONFIDENCE = 50.0


def is_answer(logits: Logits) -> Answers:
  """Whether logits are a prediction, bool [batch]: none is NaN or inf, not all are -inf (-inf leaves a class out)."""
  return jnp.isfinite(jnp.max(logits, axis=-1))


def is_correct(logits: Logits, labels: Labels) -> Answers:
  """Whether the model's prediction is the label, bool [batch]; False if there is none (`is_answer`)."""
  return is_answer(logits) & (jnp.argmax(logits, axis=-1) == labels)


def is_adversarial(logits: Logits, labels: Labels, targets: Labels | None = None) -> Answers:
  """Whether an attack succeeds, bool [batch]: the prediction is not the label or, with targets, it is the target."""
  return ~is_correct(logits, labels) if targets is None else is_correct(logits, targets)


def true_classes(labels: AnyLabels) -> Labels:
  """The true classes, int [batch]: integer labels, or the most likely class of distributions (the first in a tie)."""
  return labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1).astype(jnp.int32)


def cross_entropy(logits: Logits, labels: AnyLabels) -> PerImage:
  """-log p_y, or -sum_k q_k log p_k if the labels are distributions q, in nats. float [batch].

  The sum is computed as the true class's term, as for an integer label, plus the terms of the difference between q and
  the true class's one-hot vector: a one-hot q adds only zeros to the loss of its class.
  """
  log_probabilities, classes = jax.nn.log_softmax(logits), true_classes(labels)
  loss = -jnp.take_along_axis(log_probabilities, classes[:, None], axis=-1)[:, 0]
  if labels.ndim == 1:
    return loss
  if labels.shape != logits.shape:
    raise ValueError(f"labels are distributions of shape {labels.shape}, but the logits have shape {logits.shape}.")
  rest = labels - jax.nn.one_hot(classes, logits.shape[-1], dtype=labels.dtype)
  # A class that the model leaves out has a log of -inf, which is used only if the label has a share of that class.
  return loss - jnp.sum(jnp.where(rest != 0, rest * log_probabilities, 0.0), axis=-1)


def margin(logits: Logits, labels: Labels) -> PerImage:
  """max_{k != y} z_k - z_y, in logits; positive exactly when misclassified. float [batch]."""
  true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  best_other = jnp.max(jnp.where(true, -jnp.inf, logits), axis=-1)
  return best_other - jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]


def cw(logits: Logits, labels: Labels) -> PerImage:
  """The Carlini-Wagner margin loss -max(z_y - max_{k != y} z_k + 50, 0) (arXiv:1608.04644, f_6), in logits."""
  return -jnp.maximum(CW_CONFIDENCE - margin(logits, labels), 0.0)


def dlr(logits: Logits, labels: Labels) -> PerImage:
  """Difference of logits ratio, max_{k != y}(z_k - z_y) / (z_1st - z_3rd) (AutoAttack, arXiv:2003.01690, eq. 6).

  Invariant to shift and scale of the logits; at most 1. Raises ValueError for fewer than three classes, for which
  it is undefined.
  """
  if logits.shape[-1] < 3:
    raise ValueError(f"loss='dlr' needs at least 3 classes, but the model has {logits.shape[-1]}; use loss='cw'.")
  top = jax.lax.top_k(logits, 3)[0]
  lead = margin(logits, labels)
  gap = jnp.where(jnp.isfinite(top[:, 2]), top[:, 0] - top[:, 2], 1.0)  # if the third is left out, the margin itself
  # If the true class is third, the loss is 1 for all logits; rounding must not give it a gradient.
  third = (lead == gap) & (lead > 0)
  return jnp.where(third, 1.0, lead / (gap + 1e-12))


def margin_targeted(logits: Logits, labels: Labels, targets: Labels) -> PerImage:
  """z_t - z_y for targets t [batch], in logits; positive only when misclassified. float [batch]."""
  rows = jnp.arange(logits.shape[0])
  return logits[rows, targets] - logits[rows, labels]


def dlr_targeted(logits: Logits, labels: Labels, targets: Labels) -> PerImage:
  """(z_t - z_y) / (z_1st - (z_3rd + z_4th) / 2) (AutoAttack, arXiv:2003.01690, eq. 7).

  Raises ValueError for fewer than four classes, for which it is undefined.
  """
  if logits.shape[-1] < 4:
    raise ValueError(
      f"loss='dlr_targeted' needs at least 4 classes, but the model has {logits.shape[-1]}; use loss='margin_targeted'."
    )
  top = jax.lax.top_k(logits, 4)[0]
  third, fourth = top[:, 2], jnp.where(jnp.isfinite(top[:, 3]), top[:, 3], top[:, 2])
  gap = jnp.where(jnp.isfinite(third), top[:, 0] - 0.5 * (third + fourth) + 1e-12, 1.0)
  return margin_targeted(logits, labels, targets) / gap


def choose_targets(
  clean_logits: Logits, labels: Labels, targets: Labels | None, target_rank: Rank | None
) -> Labels | None:
  """The target classes, int [batch]: `targets` as given, or those of a rank; None if neither is given.

  `target_rank` ranks the wrong classes by their logit on the clean image, 1 = the most likely. If the model is right,
  this is AutoAttack's order: the 2nd largest logit, the 3rd and so on. It may be traced. Raises ValueError if both are
  given, for targets that are not one class per image, and for a rank that does not exist.
  """
  batch, num_classes = clean_logits.shape
  if targets is not None:
    if target_rank is not None:
      raise ValueError(f"pass targets or target_rank={target_rank}, not both.")
    if targets.shape != (batch,) or not jnp.issubdtype(targets.dtype, jnp.integer):
      raise ValueError(f"targets must be integers of shape {(batch,)}, one class per image.")
    return targets
  if target_rank is None:
    return None
  if not isinstance(target_rank, jax.core.Tracer) and not 1 <= target_rank < num_classes:
    raise ValueError(f"target_rank={target_rank} is outside [1, {num_classes - 1}] for {num_classes} classes.")
  label_first = jnp.where(jax.nn.one_hot(labels, num_classes, dtype=bool), jnp.inf, clean_logits)
  # If an image has fewer classes, because the logits of others are -inf, the last of them is used.
  rank = jnp.minimum(target_rank, jnp.sum(jnp.isfinite(label_first), axis=-1))
  return jnp.take_along_axis(jnp.argsort(-label_first, axis=-1), rank[:, None], axis=-1)[:, 0]


def kl(logits: Logits, clean_logits: Logits) -> PerImage:
  """KL(p(x) || p(x_adv)) in nats, which TRADES maximises (arXiv:1901.08573, eq. 5). float [batch]."""
  log_clean, log_found = jax.nn.log_softmax(clean_logits), jax.nn.log_softmax(logits)
  used = jnp.isfinite(log_clean) & jnp.isfinite(log_found)  # a class of probability 0 adds nothing
  return jnp.sum(jnp.exp(log_clean) * jnp.where(used, log_clean - log_found, 0.0), axis=-1)


_WITH_LABELS = {"ce": cross_entropy, "cw": cw, "dlr": dlr, "margin": margin}
# Losses that need targets, and the targeted forms of the losses above, in which the target replaces the label.
_WITH_TARGETS = {"dlr_targeted": dlr_targeted, "margin_targeted": margin_targeted}
_TOWARDS_TARGETS = _WITH_TARGETS | {
  "ce": lambda logits, labels, targets: -cross_entropy(logits, targets),
  "cw": lambda logits, labels, targets: -jnp.maximum(CW_CONFIDENCE + margin(logits, targets), 0.0),
  "dlr": dlr_targeted,
  "margin": lambda logits, labels, targets: -margin(logits, targets),
}
LOSSES = (*_WITH_LABELS, "kl")
TARGETED_LOSSES = tuple(_WITH_TARGETS)


def surrogate(
  name: str,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  targets: Labels | None = None,
  label_distributions: Distributions | None = None,
) -> Callable[[Logits], PerImage]:
  """The loss of that name as a function of logits alone: [batch, classes] -> [batch]; with targets that of `targeted`.

  "kl" compares with the model's own prediction on the clean `images`, which costs one forward pass here. "ce" uses
  `label_distributions` if they are given; the other losses use `labels`.
  Raises ValueError, with the choices, for an unknown name.
  """
  check_choice(name, "loss", LOSSES)
  if targets is not None:
    return targeted(name, labels, targets)
  if name == "kl":
    clean_logits = jax.lax.stop_gradient(logits_fn(images))
    return lambda logits: kl(logits, clean_logits)
  if name == "ce" and label_distributions is not None:
    return lambda logits: cross_entropy(logits, label_distributions)
  return lambda logits: _WITH_LABELS[name](logits, labels)


def targeted(name: str, labels: Labels, targets: Labels) -> Callable[[Logits], PerImage]:
  """The loss of that name towards targets t, as a function of logits alone: [batch, classes] -> [batch].

  "ce" is log p_t, "margin" z_t - max_{k != t} z_k, "cw" that margin minus 50, at most 0, "dlr" and "dlr_targeted"
  AutoAttack's targeted DLR, "margin_targeted" z_t - z_y. Raises ValueError, with the choices, for any other name.
  """
  if name not in _TOWARDS_TARGETS:
    raise ValueError(f"loss={name!r} takes no targets; choose from {sorted(_TOWARDS_TARGETS)}.")
  return lambda logits: _TOWARDS_TARGETS[name](logits, labels, targets)
