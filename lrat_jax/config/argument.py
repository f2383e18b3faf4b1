"""Reads a config's argument, the text after the colon of `--config=lrat:cifar10,pgd,linf=4/255,suite=full`."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lrat_jax.config import train_attacks
from lrat_jax.config.attack_entries import ball
from lrat_jax.config.budgets import NORMS, Budget, with_radius
from lrat_jax.config.suites import DEFAULT, SUITES, Suite

Preset = Mapping[str, Any]


class Argument(NamedTuple):
  """What a config's argument names; `words` are its parts for the run's name, without the suite."""

  preset: Preset
  budget: Budget
  train_attacks: dict[str, dict[str, Any]]
  suite: Suite
  words: list[str]


def parse(arg: str | None, presets: Mapping[str, Preset], attack: str) -> Argument:
  """Reads a config's argument, which `default.default` describes.

  Args:
    arg: the argument; empty is "digits".
    presets: the presets by name.
    attack: the training attack, or "union", if the argument names none.

  Raises:
    ValueError: as `default.default`.
  """
  preset_name, *more = (arg or "digits").split(",")
  entries = [name.partition("=") for name in more]
  suite_names = [value for key, equals, value in entries if equals and key == "suite"] or [DEFAULT]
  radii = [(key, value) for key, equals, value in entries if equals and key in NORMS]
  attack_names = ["".join(entry) for entry in entries if not entry[1] or entry[0] not in ("suite", *NORMS)]
  where = f"in the config's argument {arg!r}"
  if preset_name not in presets:
    raise ValueError(f"data set {preset_name!r} is unknown {where}; choose from {sorted(presets)}.")
  preset = presets[preset_name]
  choices = sorted((*train_attacks.by_name(preset["budget"]), "union"))
  for name in attack_names:
    if name not in choices:
      raise ValueError(
        f"training attack {name!r} is unknown {where}; choose from {choices}, or set a radius: linf=, l2= or l1=."
      )
  expanded = train_attacks.expanded(attack_names or [attack])
  if len(set(expanded)) < len(expanded):
    raise ValueError(f"the config's argument {arg!r} lists a training attack twice.")
  if len(suite_names) > 1 or suite_names[0] not in SUITES:
    raise ValueError(f"suite {','.join(suite_names)!r} is unknown {where}; choose one from {sorted(SUITES)}.")
  budget = _with_radii(arg, preset["budget"], radii)
  every_attack = train_attacks.by_name(budget)
  attacks, suite = {name: every_attack[name] for name in expanded}, SUITES[suite_names[0]](budget)
  _check_use(arg, dict(radii), (*attacks.values(), *suite.values()))
  words = [preset_name, *(f"{norm}{radius.replace('/', '_')}" for norm, radius in radii), *attack_names]
  return Argument(preset, budget, attacks, suite, words)


def _with_radii(arg: str | None, budget: Budget, radii: list[tuple[str, str]]) -> Budget:
  """The budget with the argument's radii. Raises ValueError if one is no number above 0, or is set twice."""
  for norm, radius in radii:
    try:
      budget = with_radius(budget, norm, radius)
    except ValueError as error:
      raise ValueError(f"the config's argument {arg!r}: {error}") from None
  if len(dict(radii)) < len(radii):
    raise ValueError(f"the config's argument {arg!r} sets a radius twice.")
  return budget


def _check_use(arg: str | None, radii: Iterable[str], entries: Iterable[Mapping[str, Any]]) -> None:
  """Raises ValueError if the argument sets the radius of a norm in which there is no attack."""
  used = {norm for entry in entries for norm in entry.get("radii", (ball(entry),))}
  for norm in radii:
    if norm not in used:
      raise ValueError(
        f"the config's argument {arg!r}: {norm}= has no effect; neither training nor the suite has an attack in {norm}."
      )
