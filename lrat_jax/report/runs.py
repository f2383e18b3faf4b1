"""Reads and checks the content of a run's folder."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jsonschema
import numpy as np
from ml_collections import ConfigDict

from lrat_jax.analysis import inspection
from lrat_jax.config import attack_entries, earlier, validate
from lrat_jax.core import files, provenance
from lrat_jax.core.errors import ConfigError
from lrat_jax.evaluation import runner
from lrat_jax.training import metrics
from lrat_jax.training import workdir as workdir_lib

Found = TypeVar("Found")

_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}
_STAGE = {
  "type": "object",
  "properties": {
    "name": _TEXT, "robust_accuracy": _SHARE, "attacked": _COUNT, "broken": _COUNT, "gradient_calls": _COUNT,
  },
  "required": ["name", "robust_accuracy", "attacked", "broken", "gradient_calls"],
}  # fmt: skip
_COMMAND = {
  "type": "object",
  "properties": {"preset": _TEXT, "arguments": {"type": "array", "items": _TEXT}},
  "required": ["preset", "arguments"],
}
_RESULTS = {
  "type": "object",
  "properties": {
    "name": _TEXT,
    "model": _TEXT,
    "step": _COUNT,
    "config": {"type": "object"},
    "clean": _SHARE,
    "robust": {"type": "object", "additionalProperties": _SHARE, "minProperties": 1},
    "union": _SHARE,
    "n": {"type": "integer", "minimum": 1},
    "warnings": {"type": "array", "items": _TEXT},
    "autoattack": {"type": "object", "additionalProperties": {"type": "array", "items": _STAGE}},
    "suite": {"type": "object", "additionalProperties": {"type": "object", "required": ["name"]}},
    "seed": _COUNT,
    "dataset": _TEXT,
    "split": _TEXT,
    "environment": {"type": "object", "additionalProperties": {"type": ["string", "integer"]}},
  },
  "required": [
    "name", "clean", "robust", "union", "n", "warnings", "autoattack", "suite", "seed", "dataset", "split",
    "environment",
  ],
}  # fmt: skip
_SECONDS = {"type": "number", "minimum": 0}
_TIMINGS = {
  "type": "object",
  "properties": {"seconds": _SECONDS, "attack_seconds": {"type": "object", "additionalProperties": _SECONDS}},
  "required": ["seconds", "attack_seconds"],
}
_NUMBER = {"type": "number"}
_NEEDED_IN_ROWS = {
  "train": {"loss", "natural_accuracy", "adversarial_accuracy", "steps", "images_per_second"},
  "validation": {"clean", "robust"},
}
_WORST = ("attacks", "indices", "labels", "predictions", "originals", "adversarials")


class Run(NamedTuple):
  """The content of a run's folder. What the folder lacks is None, or empty.

  Attributes:
    workdir: as given.
    name: the name of its configuration, or of the function that was evaluated.
    seed: the seed of training and evaluation.
    preset: the value of --config.
    arguments: the arguments of the command, without the workdir.
    config: the configuration; None if a function was evaluated.
    results: from results.json.
    per_example: from per_example.npz.
    timings: from timings.json.
    rows: from metrics.jsonl.
    weights: from weights/epoch_*.npz, aligned.
    worst: from worst_examples.npz.
  """

  workdir: Path
  name: str
  seed: int
  preset: str
  arguments: list[str]
  config: ConfigDict | None
  results: dict[str, Any] | None
  per_example: dict[str, np.ndarray] | None
  timings: dict[str, Any] | None
  rows: list[metrics.Row]
  weights: inspection.WeightHistory | None
  worst: dict[str, np.ndarray] | None

  @property
  def batch_size(self) -> int:
    """The batch size of training; 0 if nothing was trained."""
    return 0 if self.config is None else self.config.data.batch_size


def _check(content: Mapping[str, Any], schema: Mapping[str, Any], path: Path) -> None:
  error = next(jsonschema.Draft202012Validator(schema).iter_errors(content), None)
  if error is not None:
    where = ".".join(map(str, error.absolute_path)) or "the whole file"
    raise files.CorruptFileError(f"{path} is damaged ({where}: {error.message[:200]}).")


def _if_there(path: Path, read: Callable[[Path], Found]) -> Found | None:
  return read(path) if path.exists() else None


def _read_results(path: Path) -> dict[str, Any]:
  results = files.read_json(path)
  provenance.refuse_other_schema(path, results)
  _check(results, _RESULTS, path)
  for name in results["robust"]:
    try:  # everything that the page computes from an attack, computed once to check it
      attack_entries.threat(results["suite"][name])
      attack_entries.kinds(results["suite"][name])
      attack_entries.radius(results["suite"][name])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise files.CorruptFileError(f"{path} is damaged (suite.{name}: {type(error).__name__} {error}).") from None
  if stray := sorted(set(results["autoattack"]) - set(results["robust"])):
    raise files.CorruptFileError(f"{path} is damaged (autoattack.{stray[0]} is not one of the attacks in robust).")
  return results


def _read_timings(path: Path) -> dict[str, Any]:
  timings = files.read_json(path)
  _check(timings, _TIMINGS, path)
  return timings


def _read_per_example(path: Path, results: Mapping[str, Any]) -> dict[str, np.ndarray]:
  names = [f"{field}/{name}" for name in results["robust"] for field in ("robust", "vulnerability")]
  needed = ("indices", "labels", "clean_correct", "robust", *names)
  arrays = files.read_arrays(path, needed)
  for name in needed:
    if arrays[name].shape != (results["n"],) or arrays[name].dtype.kind not in "biuf":
      raise files.CorruptFileError(f"{path} is damaged ({name} is not a column of {results['n']} numbers).")
  return arrays


def _read_rows(path: Path) -> list[metrics.Row]:
  rows = metrics.read_rows(path)
  for number, row in enumerate(rows, start=1):
    needed = _NEEDED_IN_ROWS.get(row["split"], set())
    properties = {name: _NUMBER for name in needed} | {"images_per_second": {"exclusiveMinimum": 0}}
    _check(
      row, {"type": "object", "properties": properties, "required": sorted(needed)}, Path(f"{path}, line {number}")
    )
  return rows


def _read_weights(workdir: Path) -> inspection.WeightHistory | None:
  if not inspection.has_weights(workdir):
    return None
  try:
    return inspection.weight_history(workdir)
  except files.CorruptFileError:
    raise
  except (ValueError, IndexError) as error:  # arrays whose shapes do not match
    raise files.CorruptFileError(f"{workdir / 'weights'} is damaged ({error}).") from None


def _read_worst(path: Path) -> dict[str, np.ndarray]:
  arrays = files.read_arrays(path, _WORST)
  counts = {len(arrays[name]) if arrays[name].ndim else None for name in _WORST}
  images = [arrays[name] for name in ("originals", "adversarials")]
  fitting = images[0].shape == images[1].shape and images[0].ndim == 4 and images[0].shape[-1] in (1, 3)
  if len(counts) > 1 or not fitting or not all(np.all(np.isfinite(image)) for image in images):
    raise files.CorruptFileError(f"{path} is damaged (its arrays do not fit together).")
  return arrays


def _read_config(content: Mapping[str, Any], path: Path) -> ConfigDict:
  try:
    config = ConfigDict(earlier.completed(content)[0])  # results.json has no machine-specific fields
    validate.check_form(config)
  except (ConfigError, ValueError, TypeError) as error:
    raise files.CorruptFileError(f"{path} contains no configuration of this version: {error}") from None
  return config


def _find_config(workdir: Path) -> ConfigDict | None:
  """The configuration in config.json, or in results.json if there is no config.json."""
  if (workdir / "config.json").exists():
    return _read_config(workdir_lib.read_config(workdir / "config.json"), workdir / "config.json")
  results = _if_there(workdir / "results.json", files.read_json) or {}
  if results:
    provenance.refuse_other_schema(workdir / "results.json", results)
  return _read_config(results["config"], workdir / "results.json") if "config" in results else None


def _read_command(workdir: Path, results: Mapping[str, Any] | None) -> dict[str, Any]:
  """{"preset", "arguments"}: from the results, or from config.json if there are none."""
  path = workdir / ("config.json" if results is None else "results.json")
  asked = files.read_json(path)["run"] if results is None else results
  _check(asked, _COMMAND, path)
  return {name: asked[name] for name in _COMMAND["required"]}


def is_run(folder: Path) -> bool:
  """Whether a folder looks like a run's workdir."""
  return any((folder / name).is_file() for name in ("config.json", "results.json"))


def read(workdir: Path) -> Run:
  """Reads a run's folder.

  If there are results, the configuration is the one with which they were evaluated.

  Raises:
    ConfigError: the folder is not that of a run.
    files.CorruptFileError: a file in it is damaged or not in the form that a run writes.
  """
  if not workdir.is_dir():
    raise ConfigError(f"{workdir} is not a directory; pass the workdir of a run.")
  if not is_run(workdir):
    hint = (
      f" It contains a comparison; pass its runs: {workdir}/*/seed*." if (workdir / "comparison.json").exists() else ""
    )
    raise ConfigError(f"{workdir} is not a run: it contains neither config.json nor results.json.{hint}")
  config = _find_config(workdir)
  folder = workdir if config is None else runner.results_folder(workdir, config)
  folder = folder if (folder / "results.json").exists() else workdir
  results = _if_there(folder / "results.json", _read_results)
  if results is not None and "config" in results:
    config = _read_config(results["config"], folder / "results.json")
  if config is None and results is None:
    raise ConfigError(f"{workdir} is not a run: it contains neither config.json nor results.json.")
  read_per_example = lambda path: _read_per_example(path, results)
  return Run(
    workdir=workdir,
    name=results["name"] if results is not None else config.name,
    seed=results["seed"] if results is not None else config.seed,
    **_read_command(workdir, results),
    config=config,
    results=results,
    per_example=None if results is None else _if_there(folder / "per_example.npz", read_per_example),
    timings=None if results is None else _if_there(folder / "timings.json", _read_timings),
    rows=_read_rows(workdir / "metrics.jsonl"),
    weights=_read_weights(workdir),
    worst=None if results is None else _if_there(folder / "worst_examples.npz", _read_worst),
  )


def drawn(run: Run, stem: str) -> Path | None:
  """The path of a plot that the run drew, plots/STEM.png; None if it does not exist."""
  path = run.workdir / "plots" / f"{stem}.png"
  return path if path.is_file() else None


def configuration_text(run: Run) -> str:
  """The whole configuration as indented JSON; empty if a function was evaluated."""
  return "" if run.config is None else json.dumps(run.config.to_dict(), indent=2)
