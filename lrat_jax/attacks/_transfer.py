"""Attacks made on one model and tried on another."""

from typing import Any

from lrat_jax.attacks._entry import AttackResult, entry, finished
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn


@entry()
def _evaluated(
  key: Keys, logits_fn: LogitsFn, images: Images, labels: Labels, *, targets: Labels | None = None
) -> AttackResult:
  """The images as they are, with their success on this model."""
  return finished(logits_fn, labels, images, 0 * labels, targets=targets)


def transfer(attack: Any, surrogate_logits_fn: LogitsFn) -> Any:
  """The attack, run on a surrogate model in place of the model itself: a transfer attack.

      attack = attacks.transfer(attacks.pgd, surrogate_logits_fn)
      attack(key, logits_fn, images, labels, epsilon=8 / 255, ..., gradient_transform=("diversity", "momentum")).success

  The model itself is evaluated once, on the resulting images. `success` is that of the model; `surviving_steps`,
  `broken_gradients` and the choice among restarts are by the surrogate. An attack that leaves misclassified images
  unchanged does so where the surrogate is wrong.

  Args:
    attack: one of this package, or what `from_config` and `functools.partial` make of it.
    surrogate_logits_fn: images -> logits [batch, classes], of the same classes.

  Returns:
    The attack: (key, logits_fn, images, labels, *, ...) -> AttackResult, with the arguments of the one given.
  """

  def run(key: Keys, logits_fn: LogitsFn, images: Images, labels: Labels, **arguments: Any) -> AttackResult:
    found = attack(key, surrogate_logits_fn, images, labels, **arguments)
    targets = (getattr(attack, "keywords", {}) | arguments).get("targets")
    return found._replace(success=_evaluated(key, logits_fn, found.images, labels, targets=targets).success)

  return run
