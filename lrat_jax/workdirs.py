"""Which configuration a run's folder belongs to."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lrat_jax import files
from lrat_jax.config_checks import ConfigError

# Where this machine keeps things: they change no result.
_MACHINE_FIELDS = ("data.data_dir", "data.placement", "compilation_cache")
# What may differ between two tries at one run, besides: what is judged.
_FREE_FIELDS = ("eval", *_MACHINE_FIELDS)


def _without(config: dict[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
  plain = json.loads(json.dumps(config))
  for path in paths:
    *parents, leaf = path.split(".")
    node = plain
    for key in parents:
      node = node.get(key)
    if isinstance(node, dict):
      node.pop(leaf, None)
  return plain


def portable(config: ConfigDict) -> dict[str, Any]:
  """A configuration as plain JSON data, without the fields that belong to a machine and change no result."""
  return _without(config.to_dict(), _MACHINE_FIELDS)


def _difference(saved: dict[str, Any], asked: dict[str, Any], prefix: str = "config") -> list[str]:
  """The fields in which two nested dictionaries differ, a line each: "config.seed: 0 in the workdir, 1 asked for"."""
  lines = []
  for key in sorted(set(saved) | set(asked)):
    path, old, new = f"{prefix}.{key}", saved.get(key, "absent"), asked.get(key, "absent")
    if isinstance(old, dict) and isinstance(new, dict):
      lines += _difference(old, new, path)
    elif old != new:
      lines.append(f"{path}: {old!r} in the workdir, {new!r} asked for")
  return lines


def check(workdir: Path, config: ConfigDict) -> None:
  """Refuses a workdir that is no directory or holds a run of another configuration, and shows the difference.

  Raises:
    ConfigError: with the fields that differ and their values.
  """
  try:
    if workdir.exists() and not workdir.is_dir():
      raise ConfigError(f"--workdir={workdir} is a file, not a directory.")
    saved_file = workdir / "config.json"
    if not saved_file.exists():
      return
    saved = files.read_json(saved_file)
  except OSError as error:  # a name that is too long, or a folder that may not be looked into
    raise ConfigError(f"--workdir={workdir} cannot be: {error.strerror}.") from None
  except files.DamagedError as error:
    raise ConfigError(f"{error} Give another --workdir or remove this one.") from None
  lines = _difference(_without(saved, _FREE_FIELDS), _without(config.to_dict(), _FREE_FIELDS))
  if lines:
    raise ConfigError(
      f"--workdir={workdir} holds a run of another configuration ({'; '.join(lines)}); give another --workdir."
    )
