"""Transfer attacks: run on one model and evaluated on another."""

from typing import Any

from lrat_jax.attacks._entry import AttackResult, entry, finished
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn


@entry()
def _evaluated(
  key: Keys, logits_fn: LogitsFn, images: Images, labels: Labels, *, targets: Labels | None = None
) -> AttackResult:
  """The images unchanged, with their success on this model."""
  return finished(logits_fn, labels, images, 0 * labels, targets=targets)


def transfer(attack: Any, surrogate_logits_fn: LogitsFn) -> Any:
  """A transfer attack: the given attack, run on a surrogate model instead of the model itself.

      attack = attacks.transfer(attacks.pgd, surrogate_logits_fn)
      attack(key, logits_fn, images, labels, epsilon=8 / 255, ..., gradient_transform=("diversity", "momentum")).success

  The model itself is only evaluated on the resulting images. `success` refers to the model; `surviving_steps`,
  `broken_gradients` and the choice among restarts refer to the surrogate. An attack that returns misclassified images
  unchanged does so for the images that the surrogate misclassifies.

  Args:
    attack: an attack of this package, or the result of `from_config` or `functools.partial`.
    surrogate_logits_fn: images -> logits [batch, classes], with the same classes.

  Returns:
    The transfer attack: (key, logits_fn, images, labels, *, ...) -> AttackResult, with the given attack's arguments.
  """

  def run(key: Keys, logits_fn: LogitsFn, images: Images, labels: Labels, **arguments: Any) -> AttackResult:
    found = attack(key, surrogate_logits_fn, images, labels, **arguments)
    targets = (getattr(attack, "keywords", {}) | arguments).get("targets")
    return found._replace(success=_evaluated(key, logits_fn, found.images, labels, targets=targets).success)

  return run
