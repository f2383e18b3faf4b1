"""The command-line options of a comparison."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from lrat_jax.config import command_line
from lrat_jax.core.errors import ConfigError

BAD_INPUT, NOT_FINITE = 2, 3
_MOST_JOBS = 1000


class Options(NamedTuple):
  """The parsed options."""

  methods: list[str]
  seeds: list[int]
  data: str
  suite: str
  overrides: list[str]
  workdir: Path
  jobs: int
  track: list[str]


def _flags() -> flags.FlagValues:
  values = flags.FlagValues()
  flags.DEFINE_list("methods", None, "the methods", flag_values=values)
  flags.DEFINE_list("seeds", ["0", "1", "2"], "the seeds", flag_values=values)
  flags.DEFINE_string("data", "digits", "a preset and radii", flag_values=values)
  flags.DEFINE_string("suite", "full", "the evaluation suite", flag_values=values)
  flags.DEFINE_string("workdir", None, "the folder of the runs and the result", flag_values=values)
  flags.DEFINE_integer("jobs", 1, "number of runs at the same time", flag_values=values)
  flags.DEFINE_list("track", [], "wandb, mlflow", flag_values=values)
  flags.DEFINE_bool("help", False, "shows help", short_name="h", flag_values=values)
  return values


def parse(arguments: Sequence[str]) -> Options | None:
  """Reads the command line; returns None if help was requested. Raises ConfigError with a one-line message."""
  command_line.check_characters(arguments)
  arguments = [command_line.expand_home(argument) for argument in arguments]
  overrides = [argument for argument in arguments if command_line.OVERRIDE.match(argument)]
  values = _flags()
  try:
    rest = values(["compare", *(argument for argument in arguments if argument not in overrides)])[1:]
  except flags.Error as error:
    raise ConfigError(command_line.reason(error)) from None
  if values.help:
    return None
  if rest:
    raise ConfigError(f"{rest[0]!r} is not understood; options are written --name=value.")
  if not values.methods:
    raise ConfigError("--methods is missing; try --methods=at,irat,lrat,lrat_irat.")
  from lrat_jax.config.budgets import NORMS
  from lrat_jax.config.default import PRESETS  # imports JAX, which is slow and not needed for help or a wrong flag
  from lrat_jax.config.suites import SUITES

  preset, *radii = values.data.split(",")
  for name, value, choices in (("data", preset, PRESETS), ("suite", values.suite, SUITES)):
    if value not in choices:
      raise ConfigError(f"--{name}={value!r} is unknown; choose from {sorted(choices)}.")
  for radius in radii:
    if not radius.startswith(tuple(f"{norm}=" for norm in NORMS)):
      raise ConfigError(f"--data={values.data!r}: {radius!r} does not set a radius, as linf=4/255 does.")
  if not values.seeds or not all(re.fullmatch("[0-9]{1,10}", seed) for seed in values.seeds):
    raise ConfigError(f"--seeds={','.join(values.seeds)!r} must be whole numbers, such as 0,1,2.")
  if any(argument.lstrip("-").startswith("config.seed") for argument in overrides):
    raise ConfigError("--config.seed cannot be set for a comparison; use --seeds=0,1,2.")
  if not 1 <= values.jobs <= _MOST_JOBS:
    raise ConfigError(f"--jobs={values.jobs} must be between 1 and {_MOST_JOBS}.")
  for name, given in (("methods", values.methods), ("seeds", [seed.lstrip("0") for seed in values.seeds])):
    if len(set(given)) < len(given):
      raise ConfigError(f"--{name}={','.join(values[name].value)!r} contains an entry twice.")
  workdir = Path(values.workdir or "runs/compare_" + re.sub(r"[^\w.+-]+", "_", values.data))
  seeds = [int(seed) for seed in values.seeds]
  return Options(values.methods, seeds, values.data, values.suite, overrides, workdir, values.jobs, values.track)
