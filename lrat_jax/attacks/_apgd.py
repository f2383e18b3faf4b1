"""Auto-PGD: projected gradient ascent with momentum and an adaptive step size."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrat_jax.attacks import _l1, losses, threat_model
from lrat_jax.attacks._ascent import best_run
from lrat_jax.attacks._entry import AttackResult, entry, finished
from lrat_jax.attacks.threat_model import per_image
from lrat_jax.core.arguments import check_choice
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn, Rank, Scalar

LOSSES = ("ce", "cw", "margin", "dlr", *losses.TARGETED_LOSSES)

# Weight of the gradient step; the last step has the remaining weight.
_MOMENTUM = 0.75
# The step size is halved if the loss increased in at most this share of a period's steps.
_ENOUGH_RISES = 0.75


class _Evaluation(NamedTuple):
  """An evaluation of the model at some points: the loss [batch], its gradient, and flags [batch]."""

  loss: Array
  wrong: Array  # whether the prediction differs from the label
  success: Array  # whether the points are adversarial: the prediction is wrong or, with targets, is the target
  gradient: Array
  broken: Array  # whether the gradient has a NaN or infinite entry


class _Pace(NamedTuple):
  """The step size and the values that decide when to halve it, each [batch]."""

  step_size: Array
  last_loss: Array
  rises: Array  # number of steps of this period in which the loss increased
  checked_loss: Array  # the best loss at the last check
  halved: Array  # whether that check halved the step size


class _State(NamedTuple):
  """The state of a run before the model is evaluated at x^step; arrays [batch, ...] except `step`."""

  step: Array
  points: Array  # x^step, where the model is evaluated next
  origin: Array  # the point from which the last step was taken: x^{step-1}, or the best point
  best_points: Array
  best: _Evaluation
  adversarial: Array
  fooled: Array
  survived: Array
  broken: Array  # number of gradients so far with a NaN or infinite entry
  pace: Any


class _Rule(NamedTuple):
  """The parts of APGD that depend on the norm: initial pace, step, update at a check, and times of the checks.

  Attributes:
    begin: (start, evaluation) -> pace.
    move: (pace, points, origin of the last step, gradient, whether it is the first step) -> the next points.
    adapt: (pace, best_points, best_loss, period) -> (pace, [batch] bool: whether to continue from the best point).
    periods: int [steps], the length of the period that ends with each step, 0 if none ends there.
  """

  begin: Callable[[Array, _Evaluation], Any]
  move: Callable[[Any, Array, Array, Array, Array], Array]
  adapt: Callable[..., tuple[Any, Array]]
  periods: np.ndarray


def check_periods(num_steps: int) -> np.ndarray:
  """int [num_steps]: the length of the period that ends with each step, 0 if none ends there.

  The first period is 22% of the steps. Each next one is shorter by 3% of the steps, but at least 6% (arXiv:2003.01690,
  section 3.2): 22, 19, 16, 13, 10, 7, 6, 6, ... for 100 steps.
  """
  length, shrink, shortest = (max(int(share * num_steps), 1) for share in (0.22, 0.03, 0.06))
  periods = np.zeros(num_steps, np.int32)
  end = length
  while end <= num_steps:
    periods[end - 1] = length
    length = max(length - shrink, shortest)
    end += length
  return periods


def _choose(where: Array, new: Any, old: Any) -> Any:
  """Selects, for each image, the values of tree `new` if `where` [batch] is true, else those of tree `old`."""
  return jax.tree.map(lambda a, b: jnp.where(per_image(where, a.ndim), a, b), new, old)


def _dense_rule(images: Array, epsilon: float | Array, ball: threat_model.Norm, num_steps: int) -> _Rule:
  """L-inf and L2: momentum; the step size is halved if the loss increases too rarely or the best loss is unchanged."""

  def begin(_: Array, evaluation: _Evaluation) -> _Pace:
    zero = 0.0 * evaluation.loss
    # The original compares the first loss with an empty row of its table, that is with 0, and at the first check it
    # ignores that the best loss is unchanged. Both are kept, because they affect all later steps.
    return _Pace(2.0 * epsilon + zero, zero, zero, evaluation.loss, zero == 0.0)

  def move(pace: _Pace, points: Array, origin: Array, gradient: Array, is_first: Array) -> Array:
    project = lambda points: threat_model.project(points, images, epsilon, ball)
    step = per_image(pace.step_size, images.ndim) * ball.steepest(gradient)
    share = jnp.where(is_first, 1.0, _MOMENTUM)
    ahead = project(points + step) - points
    return project(points + share * ahead + (1.0 - share) * (points - origin))

  def adapt(pace: _Pace, _: Array, best_loss: Array, period: Array) -> tuple[_Pace, Array]:
    halve = (pace.rises <= _ENOUGH_RISES * period) | (~pace.halved & (pace.checked_loss >= best_loss))
    step_size = jnp.where(halve, 0.5 * pace.step_size, pace.step_size)
    return pace._replace(step_size=step_size, rises=0.0 * pace.rises, checked_loss=best_loss, halved=halve), halve

  return _Rule(begin, move, adapt, check_periods(num_steps))


def _sparse_rule(images: Array, epsilon: float | Array, num_steps: int) -> _Rule:
  """L1: steps along few coordinates, and along fewer as the support of the perturbation shrinks; no momentum."""
  period = _l1.period(num_steps)
  return _Rule(
    begin=lambda start, _: _l1.begin(start, images, epsilon),
    move=lambda pace, points, origin, gradient, is_first: _l1.move(pace, points, gradient, images, epsilon),
    adapt=lambda pace, best_points, *_: _l1.adapt(pace, best_points, images, epsilon),
    periods=np.where((np.arange(num_steps) + 1) % period == 0, period, 0).astype(np.int32),
  )


def _observe(pace: Any, loss: Array) -> Any:
  if not isinstance(pace, _Pace):
    return pace
  return pace._replace(last_loss=loss, rises=pace.rises + (loss > pace.last_loss))


def _ascend(
  rule: _Rule, ask: Callable[[Array, Array], _Evaluation], start: Array, num_steps: int, early_stop: bool
) -> _State:
  """Runs `num_steps` steps from `start`; with `early_stop`, ends once the attack has succeeded on every image.

  The model is called at one place in the code, also for x^0, so that its gradient is compiled only once.
  """
  periods = jnp.asarray(np.append(0, rule.periods))  # of the period that ends with the step to x^k

  def advance(state: _State) -> _State:
    is_first = state.step == 0
    evaluation = ask(state.points, state.step)
    adversarial = _choose(evaluation.success & ~(state.fooled & early_stop), state.points, state.adversarial)
    fooled = state.fooled | evaluation.success
    counts = ~evaluation.wrong & (state.step < num_steps) & ~(fooled & early_stop)  # x^0..x^{K-1}, not x^K
    better = is_first | (evaluation.loss > state.best.loss)
    best_points, best = _choose(better, (state.points, evaluation), (state.best_points, state.best))
    begun = rule.begin(state.points, evaluation)
    pace = jax.tree.map(lambda new, old: jnp.where(is_first, new, old), begun, _observe(state.pace, evaluation.loss))
    period = periods[state.step]
    adapted, again = rule.adapt(pace, best_points, best.loss, period)
    pace = jax.tree.map(lambda new, old: jnp.where(period > 0, new, old), adapted, pace)
    origin, gradient = _choose(again & (period > 0), (best_points, best.gradient), (state.points, evaluation.gradient))
    points = rule.move(pace, origin, state.origin, gradient, is_first)
    survived, broken = state.survived + counts, state.broken + evaluation.broken
    return _State(state.step + 1, points, origin, best_points, best, adversarial, fooled, survived, broken, pace)

  def goes_on(state: _State) -> Array:
    more = state.step <= num_steps
    return more & ~jnp.all(state.fooled) if early_stop else more

  # Computed from the points, not a constant: under shard_map, a loop carry must vary over devices from the start.
  never = jnp.any(start > jnp.inf, axis=tuple(range(1, start.ndim)))
  no_gradient = jnp.broadcast_to(per_image(never, start.ndim), start.shape).astype(start.dtype)
  unasked = _Evaluation(never.astype(start.dtype), never, never, no_gradient, never)
  pace = rule.begin(start, unasked)
  zero = never.astype(jnp.int32)
  first = _State(jnp.int32(0), start, start, start, unasked, start, never, zero, zero, pace)
  return jax.lax.while_loop(goes_on, advance, first)


def _asker(logits_fn: Callable, surrogate: Callable[[Array], Array], labels: Array, targets, keys, eot_iter: int):
  """Returns (points, step) -> `_Evaluation`, from one call of the model, or the mean over `eot_iter` random calls."""

  def total_loss(points, *draw):
    logits = logits_fn(points, *draw)
    loss = surrogate(logits)
    answers = (losses.is_adversarial(logits, labels, goal) & threat_model.finite(points) for goal in (None, targets))
    return jnp.sum(loss), (loss, *(answer.astype(loss.dtype) for answer in answers))

  def once(points, *draw) -> _Evaluation:
    gradient, (loss, wrong, success) = jax.grad(total_loss, has_aux=True)(points, *draw)
    broken = (~threat_model.finite(gradient)).astype(loss.dtype)
    return _Evaluation(loss, wrong, success, threat_model.numbers(gradient), broken)

  def answered(mean: _Evaluation) -> _Evaluation:
    return mean._replace(wrong=mean.wrong > 0.5, success=mean.success > 0.5, broken=mean.broken > 0)

  def ask(points: Array, step: Array) -> _Evaluation:
    if not eot_iter:
      return answered(once(points))
    fold = lambda draw: jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, step), draw))(keys)
    add = lambda draw, total: jax.tree.map(jnp.add, total, once(points, fold(draw)))
    total = jax.lax.fori_loop(1, eot_iter, add, once(points, fold(0)))
    return answered(jax.tree.map(lambda sum_: sum_ / eot_iter, total))

  return ask


def _run_dense(ask, images, epsilon, ball: threat_model.Norm, draw, num_steps: int, early_stop: bool, keys) -> _State:
  """Runs APGD from a random point, drawn by `draw` and scaled to the surface of the ball."""
  noise = jax.vmap(lambda key: draw(key, images.shape[1:]))(keys).astype(images.dtype)
  noise = noise / (per_image(ball.length(noise), noise.ndim) + 1e-12)
  start = jnp.clip(images + epsilon * noise, 0.0, 1.0)
  return _ascend(_dense_rule(images, epsilon, ball, num_steps), ask, start, num_steps, early_stop)


def _run_l1(ask, images, epsilon, num_steps: int, early_stop: bool, keys: Array) -> _State:
  """Runs L1-APGD in three parts, starting in a ball of 3 epsilon; only the points of the last part are in the ball."""
  noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys).astype(images.dtype)
  points, survived, broken = images + noise, jnp.int32(0), jnp.int32(0)
  for factor, steps in _l1.schedule(num_steps):
    radius = factor * epsilon
    start = _l1.project(points, images, radius)
    # An adversarial outside the ball is no reason to stop.
    state = _ascend(_sparse_rule(images, radius, steps), ask, start, steps, early_stop and factor == 1.0)
    points, survived, broken = state.best_points, survived + state.survived, broken + state.broken
  return state._replace(survived=survived, broken=broken)


def _check_loss(loss: str, targets: Array | None, target_rank: int | Array | None) -> None:
  check_choice(loss, "loss", LOSSES)
  if targets is None and target_rank is None and loss in losses.TARGETED_LOSSES:
    raise ValueError(f"loss={loss!r} needs targets or target_rank.")


def _surrogate(loss: str, logits_fn, images, labels, keys, eot_iter: int, targets, target_rank):
  """The loss as a function of logits. A target rank is converted to targets by one forward pass on the clean images."""
  if targets is None and target_rank is None:
    return losses.surrogate(loss, logits_fn, images, labels)
  clean_logits = logits_fn(images, keys) if eot_iter else logits_fn(images)
  return losses.targeted(loss, labels, losses.choose_targets(clean_logits, labels, targets, target_rank))


@entry(num_steps=1, num_restarts=1, target_rank=1, eot_iter=0, early_stop=bool)
def apgd(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar,
  norm: str = "linf",
  loss: str = "ce",
  num_steps: int = 100,
  num_restarts: int = 1,
  targets: Labels | None = None,
  target_rank: Rank | None = None,
  eot_iter: int = 0,
  early_stop: bool = False,
) -> AttackResult:
  """Auto-PGD (Croce & Hein, arXiv:2003.01690, algorithm 1; for L1 arXiv:2103.01208), as AutoAttack runs it.

  The initial step size is 2 epsilon (L1: epsilon). For L-inf and L2, at each check (`check_periods`), it is halved, and
  the run continues from its best point with that point's gradient, if the loss increased in 75% of the period's steps
  or fewer, or if the last check did not halve it and the best loss has not changed since. For L1, the step size depends
  on the support of the perturbation, and 30% of the steps run in a ball of 3 epsilon, then 30% in one of 2 epsilon.
  One gradient per step. Works under `jit` and `shard_map`. In other libraries epsilon is `eps`, num_steps `n_iter` or
  `steps`, num_restarts `n_restarts`.

  Differences from the original: noise comes from a key per image, so an image's result does not depend on its batch. An
  image on which the attack fails is returned at its highest loss, not unchanged. For a random model, the loss is the
  mean over the draws, and success is decided by a majority of the draws, not by the last one. L1 always starts in
  larger balls, not only in the standard version.

  Args:
    key, images, labels: as for `pgd`.
    logits_fn: images -> logits [batch, classes]; with `eot_iter` (images, keys [batch]) -> logits.
    epsilon: radius of the ball; may be traced.
    norm: "linf", "l2" or "l1".
    loss: "ce", "dlr", "margin" or "cw"; with targets or target_rank, its targeted form (`losses.targeted`). Only with
      targets or target_rank also "dlr_targeted" or "margin_targeted".
    num_steps: 1 or more.
    num_restarts: number of independent runs. For each image, the first successful run is used, else the run with the
      highest loss.
    targets: int [batch], target classes, never the image's label; success means that the prediction is the target.
    target_rank: instead of targets, the target class by its rank among the wrong classes on the clean image, 1 = the
      most likely; may be traced. It only sets the direction: any wrong prediction is a success, as in AutoAttack.
    eot_iter: for a random model, the number of draws over which a gradient is averaged; 0 for a deterministic model.
    early_stop: end when the attack has succeeded on all images, and keep each image's first adversarial, not the last.

  Returns:
    AttackResult. Each image is its last adversarial iterate (`early_stop`: the first), else the iterate with the
    highest loss. With `early_stop`, `surviving_steps` counts only the steps before the first adversarial.

  Raises:
    ValueError: an argument outside the values listed here; the message gives its name and the choices.
  """
  ball = threat_model.get_norm(norm)
  _check_loss(loss, targets, target_rank)
  surrogate = _surrogate(loss, logits_fn, images, labels, key, eot_iter, targets, target_rank)

  def run(run_keys: Array) -> _State:
    ask = _asker(logits_fn, surrogate, labels, targets, run_keys, eot_iter)
    if norm == "l1":
      return _run_l1(ask, images, epsilon, num_steps, early_stop, run_keys)
    draw = jax.random.normal if norm == "l2" else functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0)
    return _run_dense(ask, images, epsilon, ball, draw, num_steps, early_stop, run_keys)

  def outcome(run_keys: Array) -> tuple[AttackResult, Array]:
    state = run(run_keys)
    found = _choose(state.fooled, state.adversarial, state.best_points)
    result = AttackResult(found, state.survived, broken_gradients=state.broken)
    return result, jnp.where(state.fooled, jnp.inf, state.best.loss)

  result = best_run(outcome, lambda outcome_: outcome_[1], key, num_restarts)[0]
  asked = functools.partial(_with_keys, logits_fn, key) if eot_iter else logits_fn
  return finished(asked, labels, result.images, result.surviving_steps, result.broken_gradients, targets)


def _with_keys(logits_fn: LogitsFn, keys: Array, images: Array) -> Array:
  return logits_fn(images, keys)
