"""What AutoAttack consists of: the stages of each version, with the original's counts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lrat_jax.core.arguments import check_choice, shown

VERSIONS = ("standard", "plus", "rand", "apgd")

# Gradients that `rand` averages over at every step.
_EOT_SAMPLES = 20
_TARGETS = {"linf": 9, "l2": 9, "l1": 5}


class Stage(NamedTuple):
  """One attack of the suite, in rounds; an image that falls in one round is out of the next.

  Attributes:
    name: what the original calls it.
    attack: its name for `from_config`.
    arguments: keyword arguments besides epsilon and norm.
    rounds: restarts, or targets where `targeted`.
    targeted: whether round r targets the wrong class of rank r + 1.
    gradients_per_step: one, or one a class for an attack that looks for the nearest boundary.
  """

  name: str
  attack: str
  arguments: Mapping[str, Any]
  rounds: int = 1
  targeted: bool = False
  gradients_per_step: int = 1

  def gradient_calls(self) -> int:
    """How many gradients one round takes of an image at most; 0 for an attack that takes none."""
    if self.attack == "square":
      return 0
    steps = self.arguments.get("num_steps", 100) + (self.attack == "apgd")
    steps *= self.gradients_per_step
    return steps * self.arguments.get("num_restarts", 1) * max(self.arguments.get("eot_iter", 0), 1)


class StageSummary(NamedTuple):
  """What one stage did.

  Attributes:
    name: of the stage.
    robust_accuracy: the share of all images that is left after it, in [0, 1].
    attacked, broken: images that entered it, and those of them that fell.
    seconds: wall-clock, compilation included; of work taken from a store, what it took then.
    images_per_second: images attacked a second.
    gradient_calls: gradients of the model for one image, at most: a batch stops when all its images have fallen.
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
  """Refuses what are no names of stages, or no changes to their arguments. Raises ValueError."""
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
  """The stages of a version in their order, and warnings that belong beside the result.

  With two or three classes the DLR losses that are not defined give way to margins, and there are as many targets as
  wrong classes.

  Args:
    attacks_to_run: names of the stages to keep; None keeps all.
    overrides: stage name -> arguments that replace the version's own.

  Raises:
    ValueError: an unknown version, or a part or a change of a stage that the version does not have.
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
