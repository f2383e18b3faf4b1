"""The methods of a comparison: their names, the commands that run them, and their results if there are any."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lrat_jax.config import command_line, validate
from lrat_jax.core import files, provenance
from lrat_jax.core.errors import ConfigError
from lrat_jax.evaluation import runner
from lrat_jax.training import workdir as workdir_lib

# The fields of results.json that a comparison reads.
_RESULTS = {"schema_version": int, "clean": float, "union": float, "n": int, "warnings": list}

_NAME = re.compile(r"(?P<file>[^:@]+)(:(?P<attacks>[^@]+))?(?P<fields>(@[^@=]+=[^@]*)*)")


class MethodSpec(NamedTuple):
  """One row of a comparison.

  Attributes:
    name: as given, such as "lrat:pgd+cw@local_weights.slope=4".
    config: the part of --config before the colon: a method's name, or a file.
    attacks: the training attacks that it names; if empty, the method's own.
    fields: pairs (field, value) that it changes.
  """

  name: str
  config: str
  attacks: tuple[str, ...]
  fields: tuple[tuple[str, str], ...]

  @property
  def folder(self) -> str:
    """Its name as a valid folder name."""
    return re.sub(r"[^\w.+-]+", "_", self.name)


def _is_whole(results: Mapping[str, Any]) -> bool:
  """Whether results.json has all that a comparison reads, in the form in which it was written."""
  if not all(isinstance(results.get(name), kind) for name, kind in _RESULTS.items()):
    return False
  if results["schema_version"] != provenance.SCHEMA_VERSION:
    return False
  shares = all(0 <= results[name] <= 1 for name in ("clean", "union"))
  return shares and all(isinstance(line, str) for line in results["warnings"])


class PlannedRun(NamedTuple):
  """One method with one seed: its workdir, the arguments of `lrat_jax.main`, and the resulting configuration."""

  method: MethodSpec
  seed: int
  workdir: Path
  arguments: tuple[str, ...]
  config: ConfigDict

  @property
  def name(self) -> str:
    return f"{self.method.name} seed {self.seed}"

  @property
  def command(self) -> str:
    """The shell command that repeats the run."""
    return shlex.join(["python", "-m", "lrat_jax.main", *self.arguments])

  @property
  def process(self) -> list[str]:
    """The same command as a list, with this Python interpreter."""
    return [sys.executable, "-m", "lrat_jax.main", *self.arguments]

  @property
  def results_folder(self) -> Path:
    """The folder of its results."""
    return runner.results_folder(self.workdir, self.config)

  def results(self) -> dict[str, Any] | None:
    """The content of results.json if it is complete and from exactly this configuration, otherwise None."""
    try:
      found = files.read_json(self.results_folder / "results.json")
    except files.CorruptFileError:
      return None
    return found if _is_whole(found) and found.get("config") == workdir_lib.portable(self.config) else None

  def per_example(self) -> dict[str, np.ndarray]:
    """The arrays of per_example.npz.

    Raises:
      files.CorruptFileError: the file is missing or damaged, or lacks an attack of the suite.
    """
    path = self.results_folder / "per_example.npz"
    attacked = [f"{field}/{name}" for name in self.config.eval.suite for field in ("robust", "vulnerability")]
    try:
      return files.read_arrays(path, ("clean_correct", "robust", *attacked))
    except files.CorruptFileError as error:
      raise files.CorruptFileError(
        f"{error} Remove {path.with_name('results.json')} to evaluate the run again."
      ) from None


def parse(text: str) -> MethodSpec:
  """Parses NAME[:ATTACK+ATTACK...][@FIELD=VALUE...]; NAME is the name of a method or the path of a file.

  Raises:
    ConfigError: a text of another form, or a file that does not exist (the message lists the choices).
  """
  match = _NAME.fullmatch(text)
  if match is None:
    raise ConfigError(f"--methods: {text!r} is not understood; write NAME[:ATTACK+ATTACK][@FIELD=VALUE].")
  name = match["file"]
  if name not in command_line.METHODS:
    name = name if name.endswith(".py") else f"configs/{name}.py"
    if not Path(name).is_file():
      choices = f"choose from {list(command_line.METHODS)}, or pass a path"
      raise ConfigError(f"--methods: {text!r} is not a method, and the file {name} does not exist; {choices}.")
  fields = tuple(tuple(field.split("=", 1)) for field in match["fields"].split("@")[1:])
  return MethodSpec(text, name, tuple(match["attacks"].split("+")) if match["attacks"] else (), fields)


def plan(
  methods: Sequence[MethodSpec], seeds: Sequence[int], *, data: str, suite: str, overrides: Sequence[str], workdir: Path
) -> list[PlannedRun]:
  """Plans all runs of a comparison, seed by seed so that complete comparisons come early, and checks each of them.

  Args:
    data: the name of a preset.
    suite: the name of the evaluation suite.
    overrides: `--config.FIELD=VALUE` for every method; a method's own fields come after them.
    workdir: the comparison's folder; that of a run is METHOD/seedN in it.

  Raises:
    ConfigError: an invalid name, field or value; the message names the method.
  """
  runs = []
  for seed in seeds:
    for method in methods:
      argument = ",".join([data, *method.attacks, f"suite={suite}"])
      folder = workdir / method.folder / f"seed{seed}"
      fields = [f"--config.{field}={value}" for field, value in method.fields]
      arguments = (
        f"--config={method.config}:{argument}",
        *overrides,
        *fields,
        f"--config.seed={seed}",
        f"--workdir={folder}",
      )
      try:
        config = command_line.parse(arguments).config
        validate.check(config)
      except ConfigError as error:
        raise ConfigError(f"{method.name}: {error}") from None
      runs.append(PlannedRun(method, seed, folder, arguments, config))
  _check_folders(runs)
  return runs


def _check_folders(runs: Sequence[PlannedRun]) -> None:
  """Raises ConfigError if two methods would share a folder, or if a name is too long for a folder."""
  methods: dict[Path, str] = {}
  for run in runs:
    if len(run.method.folder.encode()) > 200:
      raise ConfigError(f"--methods: {run.method.name!r} is too long; put its fields in a file in configs/.")
    if methods.setdefault(run.workdir, run.method.name) != run.method.name:
      raise ConfigError(f"--methods: {methods[run.workdir]!r} and {run.method.name!r} would share {run.workdir}.")
