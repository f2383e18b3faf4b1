"""The arms of a comparison: how each is named, the command that runs it, and whether its result is there."""

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lrat_jax import command_line, config_checks, judging, workdirs
from lrat_jax.config_checks import ConfigError

_NAME = re.compile(r"(?P<file>[^:@]+)(:(?P<attacks>[^@]+))?(?P<fields>(@[^@=]+=[^@]*)*)")


class Arm(NamedTuple):
  """One row of a comparison.

  Attributes:
    name: as it was given, "lrat:pgd+cw@local_weights.slope=4".
    config_file: the method's file.
    attacks: the training attacks that it names; empty is the method's own.
    fields: (field, value) that it changes.
  """

  name: str
  config_file: Path
  attacks: tuple[str, ...]
  fields: tuple[tuple[str, str], ...]

  @property
  def folder(self) -> str:
    """Its name as a folder's."""
    return re.sub(r"[^\w.+-]+", "_", self.name)


class Run(NamedTuple):
  """One arm with one seed: its workdir, the arguments of `lrat_jax.main`, and the configuration that they make."""

  arm: Arm
  seed: int
  workdir: Path
  arguments: tuple[str, ...]
  config: ConfigDict

  @property
  def name(self) -> str:
    return f"{self.arm.name} seed {self.seed}"

  @property
  def command(self) -> str:
    """What a reader types to repeat it."""
    return shlex.join(["python", "-m", "lrat_jax.main", *self.arguments])

  @property
  def process(self) -> list[str]:
    """The same for this interpreter."""
    return [sys.executable, "-m", "lrat_jax.main", *self.arguments]

  @property
  def results_folder(self) -> Path:
    """Where its results lie."""
    return judging.results_folder(self.workdir, self.config.eval.split)

  def results(self) -> dict[str, Any] | None:
    """The content of results.json, if it is of this very configuration; else None."""
    try:
      found = json.loads((self.results_folder / "results.json").read_text())
    except (OSError, ValueError):
      return None
    return found if found.get("configuration") == workdirs.portable(self.config) else None


def parse(text: str) -> Arm:
  """An arm from NAME[:ATTACK+ATTACK...][@FIELD=VALUE...]; NAME is a file in configs/, or the path of one.

  Raises:
    ConfigError: a text of another form, or a file that is not there (with the choices).
  """
  match = _NAME.fullmatch(text)
  if match is None:
    raise ConfigError(f"--configs: {text!r} is not understood; write NAME[:ATTACK+ATTACK][@FIELD=VALUE].")
  path = Path(match["file"] if match["file"].endswith(".py") else f"configs/{match['file']}.py")
  if not path.is_file():
    choices = sorted(file.stem for file in Path("configs").glob("*.py"))
    raise ConfigError(f"--configs: {text!r}: there is no file {path}; choose from {choices}, or give a path.")
  fields = tuple(tuple(field.split("=", 1)) for field in match["fields"].split("@")[1:])
  return Arm(text, path, tuple(match["attacks"].split("+")) if match["attacks"] else (), fields)


def plan(
  arms: Sequence[Arm], seeds: Sequence[int], *, data: str, suite: str, overrides: Sequence[str], workdir: Path
) -> list[Run]:
  """All runs of a comparison, seed by seed so that whole comparisons come early, each checked as far as it can be.

  Args:
    data: the name of a preset.
    suite: the name of the suite that judges.
    overrides: `--config.FIELD=VALUE` for every arm; an arm's own come after them.
    workdir: the comparison's folder; a run's own is ARM/seedN in it.

  Raises:
    ConfigError: a name, field or value that no run can use, with the arm.
  """
  runs = []
  for seed in seeds:
    for arm in arms:
      argument = ",".join([data, *arm.attacks, f"suite={suite}"])
      folder = workdir / arm.folder / f"seed{seed}"
      fields = [f"--config.{field}={value}" for field, value in arm.fields]
      arguments = (
        f"--config={arm.config_file}:{argument}",
        *overrides,
        *fields,
        f"--config.seed={seed}",
        f"--workdir={folder}",
      )
      try:
        config = command_line.parse(arguments).config
        config_checks.check(config)
      except ConfigError as error:
        raise ConfigError(f"{arm.name}: {error}") from None
      runs.append(Run(arm, seed, folder, arguments, config))
  return runs
