"""How to repeat a run: the command that it recorded, and the fields that differ from its method's."""

import shlex
from typing import Any, NamedTuple

from lrat_jax.config import methods
from lrat_jax.report.runs import Run
from lrat_jax.training import workdir


class Change(NamedTuple):
  """A field that differs: its path, its value, and the method's value."""

  field: str
  value: Any
  default: Any


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  fields: dict[str, Any] = {}
  for name, value in config.items():
    fields |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
  return fields


def changes(run: Run) -> list[Change] | None:
  """The fields in which a run differs from its preset; None if they cannot be determined."""
  base = None if run.config is None else methods.of_run(run.preset)
  if base is None:
    return None
  mine, theirs = (_flat(workdir.portable(config)) for config in (run.config, base))
  if set(mine) != set(theirs):
    return None
  return [Change(name, value, theirs[name]) for name, value in mine.items() if value != theirs[name]]


def text(value: Any) -> str:
  """A value in the form that the command line accepts."""
  return f"({','.join(map(str, value))},)" if isinstance(value, list | tuple) else str(value)


def command(run: Run) -> str:
  """The shell command that repeats a run."""
  return shlex.join(["python", "-m", "lrat_jax.main", *run.arguments, f"--workdir={run.workdir}"])
