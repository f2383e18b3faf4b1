"""Attacks by name: from plain configuration data to a function of (keys, logits_fn, images, labels)."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from jax import Array

from lrat_jax.attacks.apgd import apgd
from lrat_jax.attacks.carlini_wagner import carlini_wagner
from lrat_jax.attacks.corruptions import corruption
from lrat_jax.attacks.fab import fab
from lrat_jax.attacks.pgd import AttackResult, cw, fgsm, pgd
from lrat_jax.attacks.spatial import spatial
from lrat_jax.attacks.square import square

Attack = Callable[..., AttackResult]

REGISTRY: dict[str, Attack] = {
  "apgd": apgd,
  "fgsm": fgsm,
  "pgd": pgd,
  "cw": cw,
  "fab": fab,
  "square": square,
  "carlini_wagner": carlini_wagner,
  "spatial": spatial,
  "corruption": corruption,
}

# Lengths in the image range. A config may give them as the fraction that people quote, "8/255".
_LENGTHS = ("epsilon", "step_size")


def as_number(value: str | float, field: str) -> float:
  """A length from a number or from text such as "8/255" or "0.031". Raises ValueError naming the field."""
  try:
    numerator, slash, denominator = value.partition("/") if isinstance(value, str) else (value, "", "")
    number = float(numerator) / float(denominator if slash else 1)
  except (TypeError, ValueError, ZeroDivisionError, OverflowError):
    number = math.nan
  if not math.isfinite(number):
    raise ValueError(f"{field}={value!r} is no number; write it as 8/255 or 0.031.")
  return number


def _parameters(attack: Attack) -> dict[str, inspect.Parameter]:
  parameters = inspect.signature(attack).parameters
  return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def defaults(name: str) -> dict[str, Any]:
  """The keyword arguments of the attack of that name that have a value of their own."""
  return {key: p.default for key, p in _parameters(REGISTRY[name]).items() if p.default is not p.empty}


def from_config(config: Mapping[str, Any]) -> Attack:
  """The attack that `config` describes: its `name`, and that attack's keyword arguments.

  Args:
    config: a mapping (an ml_collections.ConfigDict serves) such as
      {"name": "pgd", "norm": "linf", "epsilon": "8/255", "step_size": "2/255", "num_steps": 10}.

  Returns:
    A `functools.partial`: (keys, logits_fn, images, labels) -> AttackResult.

  Raises:
    ValueError: an unknown name or argument (with the choices), a missing argument, or no number where one belongs.
  """
  arguments = dict(config)
  name = arguments.pop("name", None)
  if name not in REGISTRY:
    raise ValueError(f"name={name!r} is no attack; choose from {sorted(REGISTRY)}.")
  parameters = _parameters(REGISTRY[name])
  unknown = sorted(set(arguments) - set(parameters))
  if unknown:
    raise ValueError(
      f"{unknown[0]}={arguments[unknown[0]]!r} is no argument of {name!r}; choose from {sorted(parameters)}."
    )
  missing = [key for key, p in parameters.items() if p.default is p.empty and key not in arguments]
  if missing:
    raise ValueError(f"{missing[0]} is missing for {name!r}.")
  for field in _LENGTHS:
    if field in arguments:
      arguments[field] = as_number(arguments[field], field)
  return functools.partial(REGISTRY[name], **arguments)


def scaled(attack: Attack, factor: float | Array) -> Attack:
  """The same attack with its epsilon and step size times `factor`, for a ramp over training."""
  return functools.partial(attack, **{key: attack.keywords[key] * factor for key in _LENGTHS if key in attack.keywords})
