"""The stages of each version of AutoAttack, with the original's numbers of restarts and targets."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lrat_jax.attacks import _l1
from lrat_jax.core.arguments import check_choice, shown

VERSIONS = ("standard", "plus", "rand", "apgd")

# Gradients that `rand` averages over at every step.
_EOT_SAMPLES = 20
_TARGETS = {"linf": 9, "l2": 9, "l1": 5}


def apgd_gradients(num_steps: int, norm: str) -> int:
  """The gradients that APGD computes for an image from one start: one a step, and one at the start of each part."""
  return num_steps + (len(_l1.schedule(num_steps)) if norm == "l1" else 1)


class Stage(NamedTuple):
  """One attack of the suite, in rounds; an image that is broken in one round is not attacked in the next.

  Attributes:
    name: the original's name of the attack.
    attack: its name for `from_config`.
    arguments: keyword arguments besides epsilon and norm.
    rounds: number of restarts, or of targets if `targeted`.
    targeted: whether round r targets the wrong class of rank r + 1.
    gradients_per_step: one, or one per class for an attack that searches for the nearest decision boundary.
  """

  name: str
  attack: str
  arguments: Mapping[str, Any]
  rounds: int = 1
  targeted: bool = False
  gradients_per_step: int = 1

  def gradient_calls(self, norm: str) -> int:
    """The largest number of gradients that one round computes for an image; 0 for an attack without gradients."""
    if self.attack == "square":
      return 0
    steps = self.arguments.get("num_steps", 100)
    calls = apgd_gradients(steps, norm) if self.attack == "apgd" else steps * self.gradients_per_step
    return calls * self.arguments.get("num_restarts", 1) * max(self.arguments.get("eot_iter", 0), 1)


class StageSummary(NamedTuple):
  """The results and costs of one stage.

  Attributes:
    name: the stage's name.
    robust_accuracy: the share of all images that are still robust after it, in [0, 1].
    attacked, broken: number of images that it attacked, and number of those that it broke.
    seconds: wall-clock time, including compilation; for work loaded from a store, the time of the original computation.
    images_per_second: images attacked per second.
    gradient_calls: upper bound on the number of gradients of the model, each for one image, in all rounds: a batch
      stops when all its images are broken.
  """

  name: str
  robust_accuracy: float
  attacked: int
  broken: int
  seconds: float
  images_per_second: float
  gradient_calls: int


def _apgd_dlr(num_classes: int, restarts: int, **arguments: Any) -> Stage:
  loss = "dlr" if num_classes >= 3 else "margin"
  return Stage("apgd-dlr", "apgd", {"loss": loss, **arguments}, restarts)


def _all_stages(version: str, norm: str, num_classes: int) -> list[Stage]:
  early = {"early_stop": True}
  most = num_classes - 1
  targeted_loss = "dlr_targeted" if num_classes >= 4 else "margin_targeted"
  targets = _TARGETS[norm] if version != "plus" else 9
  apgd_t = Stage("apgd-t", "apgd", {"loss": targeted_loss, **early}, min(targets, most), True)
  fab_t = Stage("fab-t", "fab", {}, min(9, most), True)
  square = Stage("square", "square", {})
  apgd_ce = lambda restarts, **arguments: Stage("apgd-ce", "apgd", {"loss": "ce", **early, **arguments}, restarts)
  restarts = 5 if norm == "l1" else 1
  if version == "standard":
    return [apgd_ce(restarts), apgd_t, fab_t, square]
  if version == "apgd":
    return [apgd_ce(restarts), apgd_t]
  if version == "plus":
    fab = Stage("fab", "fab", {"num_restarts": 5}, gradients_per_step=num_classes)
    return [apgd_ce(5), _apgd_dlr(num_classes, 5, **early), fab, square, apgd_t, fab_t]
  random = {"eot_iter": _EOT_SAMPLES, **early}
  return [apgd_ce(1, **random), _apgd_dlr(num_classes, 1, **random)]


def _check_parts(version: str, names: list[str], attacks_to_run: Any, overrides: Any) -> None:
  """Raises ValueError for unknown stages, or for overrides that are not dicts of arguments."""
  is_list = isinstance(attacks_to_run, list | tuple) and len(attacks_to_run)
  if attacks_to_run is not None and not is_list:
    raise ValueError(f"attacks_to_run={shown(attacks_to_run)} must be a list of stages; choose from {names}, or None.")
  if not all(hasattr(changes, "items") for changes in (overrides, *getattr(overrides, "values", tuple)())):
    raise ValueError(f"overrides={shown(overrides)} must be a dict of dicts: stage -> argument -> value.")
  for field, given in (("attacks_to_run", attacks_to_run or ()), ("overrides", overrides)):
    for name in given:
      if name not in names:
        raise ValueError(f"{field}: version {version!r} has no stage {name!r}; choose from {names}.")


def stages(
  version: str,
  norm: str,
  num_classes: int,
  attacks_to_run: Sequence[str] | None,
  overrides: Mapping[str, Mapping[str, Any]],
) -> tuple[list[Stage], list[str]]:
  """The stages of a version in their order, and warnings to show with the result.

  With two or three classes, DLR losses that are not defined are replaced by margins. There are never more targets than
  wrong classes.

  Args:
    attacks_to_run: names of the stages to keep; None keeps all.
    overrides: stage name -> arguments that replace the version's own.

  Raises:
    ValueError: an unknown version, or `attacks_to_run` or `overrides` with a stage that the version does not have.
  """
  check_choice(version, "version", VERSIONS)
  found = _all_stages(version, norm, num_classes)
  names = [stage.name for stage in found]
  _check_parts(version, names, attacks_to_run, overrides)
  notes = []
  if attacks_to_run is not None and set(attacks_to_run) != set(names):
    notes.append(f"not the whole {version} version: only {', '.join(attacks_to_run)} ran.")
    found = [stage for stage in found if stage.name in attacks_to_run]
  if version == "apgd":
    notes.append("APGD-CE + APGD-T without FAB-T and Square: an upper bound on AutoAttack's robust accuracy.")
  if overrides:
    notes.append(f"not the {version} version: the arguments of {', '.join(sorted(overrides))} were changed.")
  if num_classes <= 3:
    notes.append(f"with {num_classes} classes a margin stands in for DLR losses that are not defined.")
  return [stage._replace(arguments={**stage.arguments, **overrides.get(stage.name, {})}) for stage in found], notes
