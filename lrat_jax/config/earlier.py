"""Configurations written by earlier versions, in which some fields are missing."""

import functools
import json
from collections.abc import Mapping
from typing import Any

from lrat_jax.config import default as config_lib

# Groups whose members are user-defined; they are not filled in.
_OWN_GROUPS = ("train_attacks", "validation_attack", "suite")


def _common(groups: list[Mapping[str, Any]]) -> dict[str, Any]:
  """The entries that nested dictionaries have in common, without the user-defined groups."""
  found: dict[str, Any] = {}
  for name, value in groups[0].items():
    values = [group[name] for group in groups]
    if isinstance(value, dict):
      found |= {} if name in _OWN_GROUPS else {name: _common(values)}
    elif all(other == value for other in values):
      found[name] = value
  return found


@functools.cache
def _defaults() -> dict[str, Any]:
  """All fields whose default is the same for all data sets, except the run's name; values are as in JSON."""
  # Presets that resize pictures are left out: they are newer than the fields for resizing, which are off in all others.
  presets = [name for name, preset in config_lib.PRESETS.items() if not preset["data"]["image_size"]]
  found = _common([config_lib.default("any", preset).to_dict() for preset in presets])
  return json.loads(json.dumps({name: value for name, value in found.items() if name != "name"}))


def _filled(saved: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], list[str]]:
  fields: dict[str, Any] = dict(saved)
  absent: list[str] = []
  for name, value in defaults.items():
    path = f"{prefix}.{name}"
    if isinstance(value, dict):
      group = saved.get(name, {})
      if isinstance(group, Mapping):
        filled, missing = _filled(group, value, path)
        fields, absent = (fields | {name: filled}, absent + missing) if filled else (fields, absent)
    elif name not in saved:
      fields[name] = value
      absent.append(path)
  return fields, absent


def completed(saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """Returns (all fields, absent ones at their defaults; the paths of absent ones, "config.train.label_smoothing").

  A field that was added after `saved` was written has a default that leaves runs unchanged and is the same for all data
  sets. Other fields are not filled in, and neither are fields of attacks.
  """
  return _filled(saved, _defaults(), "config")
