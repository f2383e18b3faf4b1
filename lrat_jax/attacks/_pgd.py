"""Projected gradient ascent: the one attack loop behind FGSM, PGD, CW-infinity and the TRADES attack."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from lrat_jax.attacks import losses, threat_model
from lrat_jax.core.typing import Answers, Counts, Images, KeyPerImage, Keys, Labels, LogitsFn, OneKey, Scalar

T = TypeVar("T")

RANDOM_STARTS = ("none", "uniform", "gaussian")
# TRADES, MART and MAIL start from x + 0.001 * N(0, 1).
_GAUSSIAN_START = 0.001
# Of steps, restarts, queries, and lengths: far beyond use, and far from overflow.
_MOST = 10**6


class AttackResult(NamedTuple):
  """What an attack returns.

  Attributes:
    images: float [batch, h, w, c] in [0, 1], inside the epsilon ball; carries no gradient.
    surviving_steps: int32 [batch], how many of the iterates x^0..x^{K-1} (the start included, the returned
      point not) the model still gets right, in 0..K: GAIRAT's kappa (arXiv:2010.01736).
    success: bool [batch], whether the model is wrong on the returned image, also where it was wrong on the clean one.
      One forward, which `jit` leaves out where nobody asks. None only in what a user-defined attack builds itself.
  """

  images: Images
  surviving_steps: Counts
  success: Answers | None = None


def finished(logits_fn: LogitsFn, labels: Labels, images: Images, surviving_steps: Counts) -> AttackResult:
  """An attack's result with its success, and without a gradient."""
  images = jax.lax.stop_gradient(images)
  success = ~losses.is_correct(logits_fn(images), labels)
  return jax.lax.stop_gradient(AttackResult(images, surviving_steps, success))


def example_keys(key: OneKey, example_indices: Counts) -> KeyPerImage:
  """One key per image from one key and the images' indices [batch] in their data set.

  An image's key, and so its adversarial, then depends on which image it is, not on the batch that it came in.
  """
  return jax.vmap(lambda index: jax.random.fold_in(key, index))(example_indices)


def per_image_keys(keys: Keys, images: Images) -> KeyPerImage:
  """Keys [batch]: as given, or a single key split over the batch. Raises ValueError for any other number."""
  if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
    raise ValueError(f"key must be typed, as jax.random.key makes it, not an array of {keys.dtype}.")
  if keys.ndim == 0:
    return example_keys(keys, jnp.arange(images.shape[0]))
  if keys.shape != images.shape[:1]:
    raise ValueError(f"key has shape {keys.shape}; give one key, or one for each of the {images.shape[0]} images.")
  return keys


def check_batch(images: Array, labels: Array) -> None:
  """Refuses what is no batch of images [batch, h, w, c] with integer labels [batch]. Raises ValueError."""
  if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(f"images must be float [batch, h, w, c] in [0, 1], not {images.dtype} of shape {images.shape}.")
  if labels.shape != images.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"labels must be integers of shape {images.shape[:1]}, one per image, not {labels.dtype} of shape {labels.shape}."
    )


def check_count(value: int, name: str, least: int) -> None:
  """Refuses what is no integer from `least` to a million, more than any run would end with. Raises ValueError."""
  if not isinstance(value, int) or not least <= value <= _MOST:
    raise ValueError(f"{name}={value!r} must be an integer of {least} or more, and {_MOST:,} at most.")


def check_budget(epsilon, norm: str, images: Array, **counts: tuple[int, int]) -> None:
  """Refuses a radius that images do not allow, unless it is traced, and counts (value, least) below it or past all use.

  Raises ValueError with the name.
  """
  if not isinstance(epsilon, jax.core.Tracer):
    threat_model.check_epsilon(epsilon, norm, images.shape[1:])
  for name, (value, least) in counts.items():
    check_count(value, name, least)


def prepare(
  keys: Array, images: Array, labels: Array, epsilon, norm: str, **counts: tuple[int, int]
) -> tuple[Array, threat_model.Norm]:
  """What every attack in a ball begins with: checks its arguments, and returns a key per image [batch] and the norm.

  Raises ValueError with the name of the argument that no attack can use.
  """
  check_batch(images, labels)
  check_budget(epsilon, norm, images, **counts)
  return per_image_keys(keys, images), threat_model.get_norm(norm)


def _check_step_size(step_size) -> None:
  if not isinstance(step_size, jax.core.Tracer) and not 0 <= step_size <= _MOST:
    raise ValueError(f"step_size={step_size} must be 0 or more, and {_MOST:,} at most.")


def starting_points(kind: str, keys: Array, images: Array, epsilon: float | Array, norm: threat_model.Norm) -> Array:
  """Where attacks of many steps begin: images [batch, h, w, c] in [0, 1], inside the epsilon ball.

  Args:
    kind: "uniform" in the ball, "gaussian" (0.001 * N(0, 1), as TRADES and MAIL), or "none", the images themselves.
    keys: one per image [batch].
    norm: of `get_norm`.

  Raises:
    ValueError: another kind, with the choices.
  """
  if kind not in RANDOM_STARTS:
    raise ValueError(f"random_start={kind!r} is unknown; choose from {list(RANDOM_STARTS)}.")
  if kind == "none":
    return images
  shape = images.shape[1:]
  if kind == "uniform":
    noise = epsilon * jax.vmap(lambda key: norm.sample(key, shape))(keys)
  else:
    noise = _GAUSSIAN_START * jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
  return threat_model.project(images + noise.astype(images.dtype), images, epsilon, norm)


def best_run(run: Callable[[Array], T], score: Callable[[T], Array], keys: Array, num_restarts: int) -> T:
  """Of `num_restarts` runs from fresh keys, the one with the highest score [batch] for each image.

  `run` takes keys [batch] to a tree of arrays [batch, ...]; of equal scores the first counts.
  """

  def restart(index, carry):
    best, best_score = carry
    result = run(jax.vmap(lambda key: jax.random.fold_in(key, index))(keys))
    new_score = score(result)
    better = new_score > best_score
    choose = lambda new, old: jnp.where(better.reshape(better.shape + (1,) * (new.ndim - 1)), new, old)
    return jax.tree.map(choose, result, best), jnp.maximum(best_score, new_score)

  first = run(keys)
  if num_restarts == 1:  # nothing to compare, so no forward for a score
    return first
  return jax.lax.fori_loop(1, num_restarts, restart, (first, score(first)))[0]


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
) -> AttackResult:
  """Projected gradient ascent (Madry et al., arXiv:1706.06083, section 2.1).

  x^{k+1} = P(x^k + step_size * d(grad loss(x^k))), with d the sign (linf) or the unit vector (l2) and P the
  projection on the epsilon ball and [0, 1]. A pure function: the same keys give the same images. Works under
  `jit`, `vmap` over models and `shard_map`; it contains no collective of its own.

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
    num_restarts: independent starts; per image a point that fools the model wins, then the highest loss.

  Returns:
    AttackResult. With restarts, `surviving_steps` is that of the run whose image is returned.

  Raises:
    ValueError: an argument outside what is listed here; the message gives its name and the choices.
  """
  counts = {"num_steps": (num_steps, 0), "num_restarts": (num_restarts, 1)}
  keys, ball = prepare(key, images, labels, epsilon, norm, **counts)
  _check_step_size(step_size)
  if loss == "kl" and random_start == "none":
    raise ValueError("loss='kl' has no gradient at the clean image; use random_start='gaussian' or 'uniform'.")
  surrogate = losses.surrogate(loss, logits_fn, images, labels)

  def total_loss(points):
    logits = logits_fn(points)
    return jnp.sum(surrogate(logits)), logits  # a sum: each image's gradient stays its own

  def ascend(_, carry):
    points, survived = carry
    gradient, logits = jax.grad(total_loss, has_aux=True)(points)
    survived += losses.is_correct(logits, labels).astype(jnp.int32)
    return threat_model.project(points + step_size * ball.steepest(gradient), images, epsilon, ball), survived

  def run(run_keys) -> AttackResult:
    start = starting_points(random_start, run_keys, images, epsilon, ball)
    # From the labels, not from a constant: under shard_map a carry must vary over devices from the start.
    survived = 0 * labels.astype(jnp.int32)
    return AttackResult(*jax.lax.fori_loop(0, num_steps, ascend, (start, survived)))

  def score(result: AttackResult) -> Array:
    logits = logits_fn(result.images)
    fooled = ~losses.is_correct(logits, labels)
    score = jnp.where(fooled, jnp.inf, surrogate(logits))
    return jnp.where(threat_model.finite(result.images), score, -jnp.inf)

  return finished(logits_fn, labels, *best_run(run, score, keys, num_restarts)[:2])


def fgsm(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar,
  norm: str = "linf",
  loss: str = "ce",
) -> AttackResult:
  """The fast gradient (sign) method (Goodfellow et al., arXiv:1412.6572): one step of length epsilon from the image.

  `pgd` with num_steps=1, step_size=epsilon and no random start; see there for the arguments.
  """
  return pgd(
    key, logits_fn, images, labels,
    epsilon=epsilon, step_size=epsilon, num_steps=1, norm=norm, loss=loss, random_start="none",
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
) -> AttackResult:
  """PGD on the margin loss with confidence 50, which GAIRAT and MAIL call CW-infinity.

  `pgd` with loss="cw"; see there for the arguments. It is not the CW of torchattacks and Foolbox: that is the
  minimum-norm L2 attack, `carlini_wagner` here.
  """
  return pgd(
    key, logits_fn, images, labels,
    epsilon=epsilon, step_size=step_size, num_steps=num_steps, norm=norm, loss="cw", random_start=random_start,
    num_restarts=num_restarts,
  )  # fmt: skip
