"""How a run is repeated: the command that makes its configuration, and the fields that are not the method's own."""

import itertools
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lrat_jax.config import default as config_lib
from lrat_jax.config.suites import SUITES
from lrat_jax.report.runs import Run
from lrat_jax.training import workdir

# What each file in configs/ sets on `config.default`, and its own training attack where it is not "pgd".
METHODS: dict[str, dict[str, Any]] = {
  "at": {},
  "irat": {"global_weights.kind": "gairat"},
  "lrat": {"local_weights.kind": "lrat"},
  "lrat_irat": {"local_weights.kind": "lrat", "global_weights.kind": "gairat"},
  "mart": {"objective": "mart", "beta": 5.0},
  "trades": {"objective": "trades", "beta": 6.0},
}
_ATTACKS = {"trades": "kl"}
# More training attacks in a pair than this are not looked for in every order.
_MOST_ATTACKS = 4


class Change(NamedTuple):
  """A field that differs: its path, its value, and the method's."""

  field: str
  value: Any
  default: Any


class Origin(NamedTuple):
  """Where a configuration comes from: --config's value, and the fields that were changed."""

  argument: str
  changes: list[Change]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  fields = {}
  for name, value in config.items():
    fields |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
  return fields


def _base(method: str, argument: str) -> ConfigDict:
  config = config_lib.default(method, argument, _ATTACKS.get(method, "pgd"))
  config.update_from_flattened_dict(METHODS[method])
  return config


def _arguments(config: ConfigDict) -> Iterator[str]:
  """What could stand behind the colon of --config: data set, training attacks in some order, suite."""
  attacks = sorted(config.train_attacks)
  orders = itertools.permutations(attacks) if len(attacks) <= _MOST_ATTACKS else [attacks]
  for preset, names in itertools.product(config_lib.PRESETS, [(), *orders]):
    for suite, make in SUITES.items():
      if set(make(config_lib.PRESETS[preset]["budget"])) == set(config.eval.suite):
        yield ",".join([preset, *names, f"suite={suite}"])


def origin(config: ConfigDict) -> Origin | None:
  """The file in configs/ and its argument from which the fewest changes lead to a configuration.

  None where none does: a file of the user's own names attacks of its own.
  """
  mine, best = _flat(workdir.portable(config)), None
  for method, argument in itertools.product(METHODS, _arguments(config)):
    try:
      theirs = _flat(workdir.portable(_base(method, argument)))
    except ValueError:  # an attack that the default does not know by that name
      continue
    if set(theirs) != set(mine):
      continue
    changes = [Change(name, value, theirs[name]) for name, value in mine.items() if value != theirs[name]]
    if best is None or len(changes) < len(best.changes):
      best = Origin(f"configs/{method}.py:{argument}", changes)
  return best


def text(value: Any) -> str:
  """A value as the command line takes it."""
  return f"({','.join(map(str, value))},)" if isinstance(value, list | tuple) else str(value)


def _evaluated_function(run: Run) -> str | None:
  """The command for a function, whose results keep no configuration; None where its suite is of the user's own."""
  for preset, suite in itertools.product(config_lib.PRESETS, SUITES):
    config = config_lib.default("at", f"{preset},suite={suite}")
    if config.data.source == run.results["dataset"] and config.eval.suite.to_dict() == run.results["suite"]:
      words = [f"--config=configs/at.py:{preset},suite={suite}", f"--model={run.name}", f"--config.seed={run.seed}"]
      return shlex.join(["python", "-m", "lrat_jax.main", *words, f"--workdir={run.workdir}"])
  return None


def command(run: Run, found: Origin | None) -> str | None:
  """What a reader types to repeat a run, given its `origin`; None where that cannot be told."""
  if run.config is None:
    return _evaluated_function(run)
  if found is None:
    return None
  changed = [f"--config.{change.field}={text(change.value)}" for change in found.changes]
  words = [f"--config={found.argument}", *changed, f"--workdir={run.workdir}"]
  return shlex.join(["python", "-m", "lrat_jax.main", *words])
