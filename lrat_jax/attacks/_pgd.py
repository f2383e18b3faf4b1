"""Projected gradient ascent on the image itself: FGSM, PGD, CW-infinity and the TRADES attack."""

import functools

import jax
from jax import Array

from lrat_jax.attacks import _l1, losses, threat_model, transforms
from lrat_jax.attacks._ascent import ascent, strongest
from lrat_jax.attacks._entry import AttackResult, entry
from lrat_jax.core.arguments import check_choice
from lrat_jax.core.typing import Distributions, Images, Keys, Labels, LogitsFn, Scalar

RANDOM_STARTS = ("none", "uniform", "gaussian")
# TRADES, MART and MAIL start from x + 0.001 * N(0, 1).
_GAUSSIAN_START = 0.001


def starting_points(kind: str, keys: Array, images: Array, epsilon: float | Array, norm: threat_model.Norm) -> Array:
  """The starting points of iterative attacks: images [batch, h, w, c] in [0, 1], inside the epsilon ball.

  Args:
    kind: "uniform" in the ball, "gaussian" (0.001 * N(0, 1), as TRADES and MAIL), or "none", the images themselves.
    keys: one per image [batch].
    norm: as returned by `get_norm`.

  Raises:
    ValueError: any other kind; the message gives the choices.
  """
  check_choice(kind, "random_start", RANDOM_STARTS)
  if kind == "none":
    return images
  shape = images.shape[1:]
  if kind == "uniform":
    noise = epsilon * jax.vmap(lambda key: norm.sample(key, shape))(keys)
  else:
    noise = _GAUSSIAN_START * jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
  return threat_model.project(images + noise.astype(images.dtype), images, epsilon, norm)


def stepped(
  points: Array,
  gradient: Array,
  images: Array,
  *,
  norm: str,
  epsilon: float | Array,
  step_size: float | Array,
  sparsity: Scalar,
) -> Array:
  """One step: along the steepest direction of a norm, then projected on its ball and [0, 1].

  In L1 the steepest direction is one coordinate, so many steps would be needed. Instead the step is spread over the
  coordinates with the largest gradients (SLIDE, arXiv:1904.13000, appendix D), and projected on the intersection of the
  ball and [0, 1] (arXiv:2103.01208).

  Args:
    points, gradient: float [batch, h, w, c], the starting points of the step, and the gradient there.
    images: the centre of the ball.
    sparsity: in [0, 1], L1 only: the share of the coordinates that the step does not change.
  """
  if norm == "l1":
    step = step_size * _l1.direction(_l1.movable(points, gradient), 1.0 - sparsity)
    return _l1.project(points + step, images, epsilon)
  ball = threat_model.get_norm(norm)
  return threat_model.project(points + step_size * ball.steepest(gradient), images, epsilon, ball)


@entry(num_steps=0, num_restarts=1, sparsity="[0, 1]")
def pgd(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar,
  step_size: Scalar,
  num_steps: int,
  norm: str = "linf",
  loss: str = "ce",
  random_start: str = "uniform",
  num_restarts: int = 1,
  sparsity: Scalar = 0.99,
  targets: Labels | None = None,
  gradient_transform: transforms.Transforms | None = None,
  label_distributions: Distributions | None = None,
) -> AttackResult:
  """Projected gradient ascent (Madry et al., arXiv:1706.06083, section 2.1).

  x^{k+1} = P(x^k + step_size * d(grad loss(x^k))), with d the sign (linf), the unit vector (l2) or a few coordinates
  (l1, `stepped`), and P the projection on the epsilon ball and [0, 1]. A pure function: the same keys give the same
  images. Works under `jit`, `vmap` over models and `shard_map`; it contains no collective of its own.

  Args:
    key: a typed key, which is split over the batch, or one key per image [batch].
    logits_fn: images -> logits [batch, classes]; each image's logits depend on that image alone.
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch], the true classes.
    epsilon: radius of the ball, in units of the image range; 0 returns the images. May be traced. Elsewhere `eps`.
    step_size: length of a step in the same norm. May be traced. Elsewhere `alpha`, `stepsize`, `eps_iter`.
    num_steps: number of gradient steps K. Elsewhere `steps`, `nb_iter`.
    norm: "linf", "l2" or "l1".
    loss: "ce", "cw" (margin with confidence 50), "margin", "dlr", or "kl" (from the prediction on the clean images).
    random_start: "uniform" in the ball, "gaussian" (0.001 * N(0, 1), as TRADES and MAIL), or "none".
    num_restarts: number of independent starts; for each image a run that succeeds is returned, else the run with the
      highest loss.
    sparsity: L1 only, in [0, 1]: the share of the coordinates that a step does not change; with 1 it changes only one.
      Elsewhere `l1_sparsity`, `quantile`.
    targets: int [batch], target classes, which must differ from the labels: the loss is that of `losses.targeted`
      ("ce", "cw", "margin" or "dlr"), and the attack succeeds if the prediction is the target. Elsewhere
      `set_mode_targeted_by_label` (torchattacks) and `TargetedMisclassification` (Foolbox).
    gradient_transform: for images that transfer to other models: "momentum" (MI-FGSM), "nesterov" (NI-FGSM),
      "diversity" (DI-FGSM), "translation" (TI-FGSM), a sequence of these, or one of `attacks.transforms`. With them,
      random_start="none" is usual.
    label_distributions: float [batch, classes], labels that are distributions over the classes, as after CutMix: "ce"
      is then the cross-entropy with them. Success and the other losses still use `labels`.

  Returns:
    AttackResult. With restarts, `surviving_steps` is that of the run whose image is returned. With targets it still
    counts predictions of the label. With a transform it counts at the points where the model was evaluated.

  Raises:
    ValueError: an argument outside the values listed here; the message gives its name and the choices.
  """
  ball = threat_model.get_norm(norm)
  check_choice(random_start, "random_start", RANDOM_STARTS)
  surrogate = losses.surrogate(loss, logits_fn, images, labels, targets, label_distributions)
  transform = transforms.get_transform(gradient_transform)
  take_step = functools.partial(stepped, norm=norm, epsilon=epsilon, step_size=step_size, sparsity=sparsity)
  if loss == "kl" and random_start == "none":
    raise ValueError("loss='kl' has no gradient at the clean image; use random_start='gaussian' or 'uniform'.")

  def advance(_, points: Array, gradient: Array) -> Array:
    return take_step(points, gradient, images)

  ascend = ascent(logits_fn, labels, surrogate, advance, num_steps, transform=transform, step_size=step_size)
  run = lambda run_keys: ascend(starting_points(random_start, run_keys, images, epsilon, ball), run_keys)
  return strongest(run, key, num_restarts, logits_fn, labels, surrogate, targets)


def fgsm(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar,
  norm: str = "linf",
  loss: str = "ce",
  targets: Labels | None = None,
  gradient_transform: transforms.Transforms | None = None,
  label_distributions: Distributions | None = None,
) -> AttackResult:
  """The fast gradient (sign) method (Goodfellow et al., arXiv:1412.6572): one step of length epsilon from the image.

  `pgd` with num_steps=1, step_size=epsilon, sparsity=1 and no random start; see `pgd` for the arguments.
  """
  return pgd(
    key, logits_fn, images, labels,
    epsilon=epsilon, step_size=epsilon, num_steps=1, norm=norm, loss=loss, random_start="none", sparsity=1.0,
    targets=targets, gradient_transform=gradient_transform, label_distributions=label_distributions,
  )  # fmt: skip


def cw(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar,
  step_size: Scalar,
  num_steps: int,
  norm: str = "linf",
  random_start: str = "uniform",
  num_restarts: int = 1,
  targets: Labels | None = None,
  gradient_transform: transforms.Transforms | None = None,
) -> AttackResult:
  """PGD on the margin loss with confidence 50, which GAIRAT and MAIL call CW-infinity.

  `pgd` with loss="cw"; see `pgd` for the arguments. It is not the CW of torchattacks and Foolbox: that is the
  minimum-norm L2 attack, `carlini_wagner` here.
  """
  return pgd(
    key, logits_fn, images, labels,
    epsilon=epsilon, step_size=step_size, num_steps=num_steps, norm=norm, loss="cw", random_start=random_start,
    num_restarts=num_restarts, targets=targets, gradient_transform=gradient_transform,
  )  # fmt: skip
