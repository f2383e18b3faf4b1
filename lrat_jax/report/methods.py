"""Groups runs into the methods of a comparison: runs that differ only in their seed are one method."""

import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lrat_jax.compare import summary
from lrat_jax.core.errors import ConfigError
from lrat_jax.report import repeat
from lrat_jax.report.runs import Run
from lrat_jax.training import workdir as workdir_lib

# The fields of a configuration that do not distinguish methods.
_NOT_THE_METHOD = ("seed", "eval")


class MethodRuns(NamedTuple):
  """Runs of one configuration.

  Attributes:
    name: the configuration's name, with the fields that distinguish it from other methods of that name.
    runs: one for each seed.
    changes: the fields in which the first run differs from its preset; None if they cannot be determined.
  """

  name: str
  runs: list[Run]
  changes: list[repeat.Change] | None

  @property
  def commands(self) -> list[str]:
    """The command that repeats each run."""
    return [repeat.command(run) for run in self.runs]


class EvaluatedRun(NamedTuple):
  """A run with results, in the form for `summary.summarise`; its suite has only the attacks shared by all runs."""

  method: MethodRuns
  run: Run
  command: str
  config: ConfigDict
  arrays: dict[str, np.ndarray]

  @property
  def name(self) -> str:
    return f"{self.method.name} seed {self.seed}"

  @property
  def seed(self) -> int:
    return self.run.seed

  @property
  def workdir(self) -> Path:
    return self.run.workdir

  def results(self) -> dict[str, Any]:
    return self.run.results

  def per_example(self) -> dict[str, np.ndarray]:
    return self.arrays


def _key(run: Run) -> str:
  if run.config is None:
    return run.name
  portable = workdir_lib.portable(run.config)
  return json.dumps({name: value for name, value in portable.items() if name not in _NOT_THE_METHOD}, sort_keys=True)


def _told_apart(methods: Sequence[MethodRuns]) -> list[MethodRuns]:
  """Makes the names of methods unique: adds the fields that only some of that name have changed, or their folders."""
  fields = [
    {
      f"{change.field}={repeat.text(change.value)}"
      for change in method.changes or ()
      if change.field.split(".")[0] not in _NOT_THE_METHOD
    }
    for method in methods
  ]
  renamed = []
  for method, mine in zip(methods, fields, strict=True):
    alike = [theirs for other, theirs in zip(methods, fields, strict=True) if other.name == method.name]
    own = sorted(mine.difference(mine.intersection(*alike)))
    unclear = alike.count(mine) > 1
    more = ([str(method.runs[0].workdir)] if unclear else own) if len(alike) > 1 else []
    renamed.append(method._replace(name=", ".join([method.name, *more])))
  return renamed


def group(runs: Sequence[Run]) -> list[MethodRuns]:
  """Groups runs into methods, in the order of their first runs. Raises ConfigError if a folder is named twice."""
  folders = [run.workdir.resolve() for run in runs]
  for run, folder in zip(runs, folders, strict=True):
    if folders.count(folder) > 1:
      raise ConfigError(f"{run.workdir} is given twice.")
  found: dict[tuple[str, int], list[Run]] = {}
  seen: list[tuple[str, int]] = []
  for run in runs:
    # A second run with the same configuration and seed is a separate method.
    found.setdefault((_key(run), seen.count((_key(run), run.seed))), []).append(run)
    seen.append((_key(run), run.seed))
  return _told_apart([MethodRuns(mine[0].name, mine, repeat.changes(mine[0])) for mine in found.values()])


def _images(run: Run) -> str:
  return f"the first {run.results['n']} {run.results['split']} images of {run.results['dataset']}"


def _check_same_images(runs: Sequence[Run]) -> None:
  first = runs[0]
  for run in runs[1:]:
    same = all(np.array_equal(run.per_example[name], first.per_example[name]) for name in ("indices", "labels"))
    if not same or _images(run) != _images(first):
      raise ConfigError(
        f"{run.workdir} was evaluated on other images ({_images(run)}) than {first.workdir} ({_images(first)}); "
        "only runs on the same images can be compared."
      )


def shared_suite(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
  """The attacks, equal in every argument, with which all runs were evaluated; all must have results."""
  suites = [run.results["suite"] for run in runs]
  return {name: entry for name, entry in suites[0].items() if all(suite.get(name) == entry for suite in suites)}


def _config(run: Run, suite: Mapping[str, Any]) -> ConfigDict:
  """The fields that `summary.summarise` reads."""
  trained = {} if run.config is None else run.config.train_attacks.to_dict()
  fields = {"train_attacks": trained, "eval": {"suite": suite, "split": run.results["split"]}}
  return ConfigDict(fields | {"data": {"batch_size": run.batch_size}})


def evaluated(methods: Sequence[MethodRuns]) -> list[EvaluatedRun]:
  """The runs that have results and per_example.npz, with only the attacks that they share.

  Raises:
    ConfigError: the runs were evaluated on different images, or have no attack in common.
  """
  whole = [
    entry for method in methods for entry in zip(method.runs, method.commands, [method] * len(method.runs), strict=True)
  ]
  whole = [entry for entry in whole if entry[0].per_example is not None]
  if not whole:
    return []
  runs = [run for run, *_ in whole]
  _check_same_images(runs)
  suite = shared_suite(runs)
  if not suite:
    raise ConfigError(
      f"{', '.join(str(run.workdir) for run in runs)} have no attack in common; evaluate them with the same suite."
    )
  found = []
  for run, command, method in whole:
    columns = {name: run.per_example[f"robust/{name}"].astype(bool) for name in suite}
    # An attack's arrays are named "robust/ATTACK" and so on.
    shared = {name: array for name, array in run.per_example.items() if name.partition("/")[2] in {"", "clean", *suite}}
    shared["robust"] = np.logical_and.reduce([run.per_example["clean_correct"], *columns.values()])
    found.append(EvaluatedRun(method, run, command, _config(run, suite), shared))
  return found


def summarise(found: Sequence[EvaluatedRun]) -> Mapping[str, Any]:
  """The result of `summary.summarise` for evaluated runs."""
  return types.MappingProxyType(summary.summarise(found, "All methods"))
