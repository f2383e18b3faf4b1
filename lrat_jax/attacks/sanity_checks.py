"""Checks whether a robust accuracy can be trusted: measurements on a small batch, and warnings based on them."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial

from lrat_jax.attacks import losses, threat_model
from lrat_jax.attacks._checks import check_batch
from lrat_jax.attacks._entry import AttackResult, entry, per_image_keys
from lrat_jax.attacks._pgd import cw, pgd
from lrat_jax.core.arguments import as_number
from lrat_jax.core.typing import Keys, LogitsFn

LOGIT_SCALES = (0.1, 1.0, 10.0, 100.0)

# Tolerance for rounding of inputs in [0, 1], and of sums of probabilities.
_ROUNDING = 1e-5
# Two predictions for one image, as logits of unit length, must not differ by more than this (AutoAttack's bound).
_SAME_PREDICTION = 1e-4
# exp(-x) is 0 in float32 if x is larger than this. With a larger margin in logits the gradient is only rounding error,
# which differs between compilers.
_UNDERFLOW = 104.0
# Largest acceptable share of zero gradients on the images that survive.
_VANISHING_SHARE = 0.05
# Largest acceptable share of misled images among all images; gradients with random signs would mislead half.
_MISLED_SHARE = 0.25
# AutoAttack's bound on the share of images that Square breaks after gradient attacks did not.
_SQUARE_GAIN = 0.002
# Largest acceptable gap in robust accuracy between PGD, CW and APGD-T: it is 3 to 7 points for AT, TRADES and MART, and
# 11 to 22 for GAIRAT and MAIL-AT.
_ATTACK_GAP = 0.09
# Largest acceptable gain of PGD from scaled logits; a model with sound gradients has none, except by chance.
_SCALE_GAIN = 0.03


class Findings(NamedTuple):
  """The measurements of the checks; a field that was not measured is None or empty.

  Attributes:
    lowest, highest: the lowest and the highest value of the images.
    probabilities: whether the outputs look like a softmax.
    prediction_difference: largest L2 distance between two predictions for one image, as logits of unit length.
    vanishing_share: share of zero gradients on the images that survive, over all steps of a PGD run.
    broken_share: share of all gradients of that PGD run that are NaN or infinite somewhere.
    misled_share: share of images on which its first step, along a gradient, makes the model more certain of the label.
    robust: robust accuracy by attack, weakest attack first, such as {"pgd": ..., "cw": ..., "apgd_t": ...}.
    scaled: robust accuracy under PGD by the factor on the logits.
    num_images: number of images in `robust` and `scaled`; a difference of two images is treated as chance.
    square_gain: share of all images that Square broke after gradient attacks could not.
  """

  lowest: float | None = None
  highest: float | None = None
  probabilities: bool = False
  prediction_difference: float | None = None
  vanishing_share: float | None = None
  broken_share: float | None = None
  misled_share: float | None = None
  robust: Mapping[str, float] = {}
  scaled: Mapping[float, float] = {}
  num_images: int | None = None
  square_gain: float | None = None


def looks_like_probabilities(logits: Array) -> Array:
  """Whether all outputs [batch, classes] lie in [0, 1] and each row sums to 1, up to their type's rounding. bool []."""
  rounding = max(_ROUNDING, float(jnp.finfo(logits.dtype).eps))
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  in_range = (jnp.min(logits) > -rounding) & (jnp.max(logits) < 1.0 + rounding)
  return in_range & jnp.all(jnp.abs(jnp.sum(logits, axis=-1) - 1.0) < rounding)


def prediction_difference(logits_fn: LogitsFn, images: Array, num_calls: int = 3) -> float:
  """Largest L2 distance between predictions for the same image, as logits of unit length.

  Compares calls on the whole batch, and on its halves in reverse order: a prediction must depend neither on chance nor
  on the rest of the batch. Not for use under `jit`, which would fix the random numbers of a model.
  """
  size = lambda logits: jnp.linalg.norm(logits, axis=-1, keepdims=True) + 1e-10
  shown = lambda logits: jnp.where(jnp.isneginf(logits), 0.0, logits)  # without the classes that are left out
  unit = lambda logits: shown(logits) / size(shown(logits))
  ask = lambda images: logits_fn(jnp.array(images))  # a copy, because a jit of the user's may donate its argument
  halves = jnp.split(images, [(len(images) + 1) // 2])
  in_parts = jnp.concatenate([ask(half[::-1])[::-1] for half in halves if len(half)])
  predictions = [unit(in_parts), *(unit(ask(images)) for _ in range(num_calls))]
  return max(float(jnp.max(jnp.linalg.norm(prediction - predictions[0], axis=-1))) for prediction in predictions[1:])


class WatchedGradients(NamedTuple):
  """The results of `watch_gradients` for each image.

  Attributes:
    zero_steps: int32 [batch], in 0..num_steps: steps whose gradient was 0 everywhere, or only rounding error.
    broken_steps: int32 [batch]: steps whose gradient was NaN or infinite somewhere.
    misled: bool [batch]: the first step followed a gradient, and the margin of the label grew.
    survived: bool [batch]: the model is right on the clean image and after the last step.
  """

  zero_steps: Array
  broken_steps: Array
  misled: Array
  survived: Array


@entry(num_steps=0)
def watch_gradients(
  key: Keys,
  logits_fn: LogitsFn,
  images: Array,
  labels: Array,
  *,
  epsilon: float | Array,
  norm: str = "linf",
  num_steps: int = 10,
) -> WatchedGradients:
  """Runs PGD on cross-entropy and checks the gradient of each step. Arguments as for `pgd`; the step is epsilon / 4."""
  ball = threat_model.get_norm(norm)
  noise = jax.vmap(lambda key: ball.sample(key, images.shape[1:]))(key).astype(images.dtype)
  right = lambda points: losses.is_correct(logits_fn(points), labels)

  def total_loss(points):
    logits = logits_fn(points)
    return jnp.sum(losses.cross_entropy(logits, labels)), losses.margin(logits, labels)

  def step(index, carry):
    points, zero_steps, broken_steps, first_margin, misled = carry
    gradient, margin = jax.grad(total_loss, has_aux=True)(points)
    zero = jnp.all(gradient == 0, axis=(1, 2, 3)) | (margin < -_UNDERFLOW)
    broken = ~threat_model.finite(gradient)
    # Known at the second step. Gradients that are 0 or broken are counted separately.
    sound = (zero_steps == 0) & (broken_steps == 0)
    misled = jnp.where(index == 1, sound & (margin < first_margin), misled)
    first_margin = jnp.where(index == 0, margin, first_margin)
    zero_steps, broken_steps = zero_steps + zero.astype(jnp.int32), broken_steps + broken.astype(jnp.int32)
    ahead = points + 0.25 * epsilon * ball.steepest(threat_model.numbers(gradient))
    points = threat_model.project(ahead, images, epsilon, ball)
    return points, zero_steps, broken_steps, first_margin, misled

  start = threat_model.project(images + epsilon * noise, images, epsilon, ball)
  none = 0 * labels
  first = (start, none, none, none.astype(start.dtype), none > 0)
  points, zero_steps, broken_steps, _, misled = lax.fori_loop(0, num_steps, step, first)
  return WatchedGradients(zero_steps, broken_steps, misled, right(images) & right(points))


def _robust_accuracy(logits_fn: LogitsFn, images: Array, labels: Array, result: AttackResult) -> Array:
  return jnp.mean(losses.is_correct(logits_fn(images), labels) & losses.is_correct(logits_fn(result.images), labels))


def scaled_accuracies(
  key: Keys,
  logits_fn: LogitsFn,
  images: Array,
  labels: Array,
  *,
  epsilon: float | Array,
  norm: str = "linf",
  num_steps: int = 20,
  scales: tuple[float, ...] = LOGIT_SCALES,
) -> Array:
  """Robust accuracy under CE-PGD with the logits times each scale (Hitaj et al., arXiv:2103.01914). float [scales].

  A scale changes no prediction of the model. If it helps the attack, part of the robustness came from the loss.
  """

  def accuracy(scale: Array) -> Array:
    scaled_logits = lambda points: scale * logits_fn(points)
    result = pgd(
      key, scaled_logits, images, labels, epsilon=epsilon, step_size=0.1 * epsilon, num_steps=num_steps, norm=norm
    )
    return _robust_accuracy(logits_fn, images, labels, result)

  return lax.map(accuracy, jnp.array(scales))


def run_sanity_checks(
  key: Keys,
  logits_fn: LogitsFn,
  images: Array,
  labels: Array,
  *,
  epsilon: float,
  norm: str = "linf",
  num_steps: int = 20,
) -> Findings:
  """Measures all `Findings` on one small batch except APGD-T's accuracy and Square's gain, which the caller adds.

  Not for use under `jit`: it calls the model several times to see whether its predictions are the same.

  Args:
    key, logits_fn, images, labels, epsilon, norm: as for `pgd`.
    num_steps: steps of each PGD run, of length epsilon / 10 (in `watch_gradients` epsilon / 4).
  """
  check_batch(images, labels)
  epsilon = as_number(epsilon, "epsilon")
  attack = {"epsilon": epsilon, "norm": norm, "num_steps": num_steps}
  # A Partial is an argument of the compiled function, so that the model's parameters are not constants in it.
  logits_fn = logits_fn if isinstance(logits_fn, Partial) else Partial(logits_fn)

  @jax.jit
  def measure(logits_fn, keys, images, labels):
    robust = [
      _robust_accuracy(
        logits_fn, images, labels, kind(keys, logits_fn, images, labels, step_size=0.1 * epsilon, **attack)
      )
      for kind in (pgd, cw)
    ]
    seen = watch_gradients(keys, logits_fn, images, labels, **attack)
    shares = {
      "vanishing_share": jnp.sum(jnp.where(seen.survived, seen.zero_steps, 0))
      / jnp.maximum(num_steps * jnp.sum(seen.survived), 1),
      "broken_share": jnp.mean(seen.broken_steps / max(num_steps, 1)),
      "misled_share": jnp.mean(seen.misled),
    }
    scaled = scaled_accuracies(keys, logits_fn, images, labels, **attack)
    return robust, shares, scaled

  robust, shares, scaled = measure(logits_fn, per_image_keys(key, images), images, labels)
  return Findings(
    lowest=float(jnp.min(images)),
    highest=float(jnp.max(images)),
    probabilities=bool(looks_like_probabilities(logits_fn(jnp.array(images)))),
    prediction_difference=prediction_difference(logits_fn, images),
    **{name: float(share) for name, share in shares.items()},
    robust={"pgd": float(robust[0]), "cw": float(robust[1])},
    scaled=dict(zip(LOGIT_SCALES, map(float, scaled), strict=True)),
    num_images=len(images),
  )


def _points(share: float) -> str:
  return f"{100 * share:.1f}"


def _chance(findings: Findings) -> float:
  return 2.0 / findings.num_images if findings.num_images else 0.0


def _gap_line(findings: Findings) -> list[str]:
  robust = findings.robust
  if not robust:
    return []
  first, weakest = next(iter(robust)), min(robust, key=robust.get)
  if robust[first] - robust[weakest] <= _ATTACK_GAP + _chance(findings):
    return []
  chain = ", ".join(f"{name} {_points(accuracy)} %" for name, accuracy in robust.items())
  return [f"{weakest} leaves far less than {first} ({chain}): the model may be fitted to {first}'s loss alone."]


def _scale_line(findings: Findings) -> list[str]:
  scaled = findings.scaled
  if not scaled or scaled[1.0] - min(scaled.values()) <= _SCALE_GAIN + _chance(findings):
    return []
  chain = ", ".join(f"x{scale:g} {_points(accuracy)} %" for scale, accuracy in scaled.items())
  return [f"PGD does better when the logits are scaled ({chain}): their size hides gradients."]


def warning_lines(findings: Findings) -> list[str]:
  """One line for each finding that makes a robust accuracy doubtful; none for a healthy model."""
  lines = []
  lines += [
    f"images reach {extreme:g}, outside [0, 1]: attacks clip there, so normalise in the model."
    for extreme in (findings.lowest, findings.highest)
    if extreme is not None and not -_ROUNDING <= extreme <= 1.0 + _ROUNDING
  ]
  if findings.probabilities:
    lines.append("outputs look like probabilities: give logits, or the losses' gradients vanish.")
  if findings.prediction_difference is not None and not findings.prediction_difference <= _SAME_PREDICTION:
    difference = f"{findings.prediction_difference:.2g}"
    lines.append(f"two predictions to an image differ by {difference}: by chance, or by the rest of the batch.")
  if findings.vanishing_share is not None and findings.vanishing_share > _VANISHING_SHARE:
    share = _points(findings.vanishing_share)
    lines.append(f"{share} % of the gradients on surviving images are 0: gradient attacks cannot evaluate this model.")
  if findings.broken_share:
    share = f"{100 * findings.broken_share:.3g}"
    lines.append(f"{share} % of the gradients are NaN or infinite in places: attacks take no step there.")
  if findings.misled_share is not None and findings.misled_share > _MISLED_SHARE + _chance(findings):
    share = _points(findings.misled_share)
    lines.append(f"on {share} % of the images a step along the gradient makes the model surer: gradients are masked.")
  lines += _gap_line(findings) + _scale_line(findings)
  if findings.square_gain is not None and findings.square_gain > _SQUARE_GAIN:
    gain = _points(findings.square_gain)
    lines.append(f"Square broke {gain} points that gradient attacks did not: gradients may be masked.")
  return lines
