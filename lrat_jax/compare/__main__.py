"""Trains and evaluates the methods of a comparison, and writes one table and one plot.

  python -m lrat_jax.compare --methods=at,irat,lrat,lrat_irat --seeds=0,1,2
  python -m lrat_jax.compare --methods=at,lrat:pgd+cw,irat@global_weights.kind=mail --data=fashion_mnist

  --methods=METHOD,METHOD...     NAME[:ATTACK+ATTACK][@FIELD=VALUE...]: a file in configs/ (or a path), its training
                           attacks, and fields of this method alone; the first is what the others are compared with
  --seeds=N,N...           0,1,2 if not given
  --data=PRESET            digits (if not given), fashion_mnist, cifar10, svhn
  --suite=SUITE            what evaluates all methods; full if not given
  --config.FIELD=VALUE     any field, for every method
  --workdir=DIR            where the runs and the result live; runs/compare_PRESET if not given
  --jobs=N                 runs at a time, which share the CPU's cores; 1 if not given
  --track=wandb,mlflow     where the runs can be followed; nowhere else if not given

What is there already is not run again; the same command goes on where it was stopped. The result is comparison.md,
comparison.json and comparison.png in the workdir.
Exit codes: 0 done, 1 a run failed, 2 bad input, 3 a run had a metric that was not finite.
"""

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from lrat_jax.config import command_line
from lrat_jax.core.errors import ConfigError, CorruptFileError

BAD_INPUT, NOT_FINITE = 2, 3
_MOST_JOBS = 1000


class Options(NamedTuple):
  """What was asked for."""

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
  flags.DEFINE_string("data", "digits", "a preset", flag_values=values)
  flags.DEFINE_string("suite", "full", "what evaluates", flag_values=values)
  flags.DEFINE_string("workdir", None, "where everything lives", flag_values=values)
  flags.DEFINE_integer("jobs", 1, "runs at a time", flag_values=values)
  flags.DEFINE_list("track", [], "wandb, mlflow", flag_values=values)
  flags.DEFINE_bool("help", False, "shows help", short_name="h", flag_values=values)
  return values


def parse(arguments: Sequence[str]) -> Options | None:
  """Reads the command line; None where help was asked for. Raises ConfigError with one line of what is wrong."""
  command_line.check_characters(arguments)
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
  from lrat_jax.config.default import PRESETS  # imports JAX, which help and a wrong flag need not wait for
  from lrat_jax.config.suites import SUITES

  for name, value, choices in (("data", values.data, PRESETS), ("suite", values.suite, SUITES)):
    if value not in choices:
      raise ConfigError(f"--{name}={value!r} is unknown; choose from {sorted(choices)}.")
  if not values.seeds or not all(re.fullmatch("[0-9]{1,10}", seed) for seed in values.seeds):
    raise ConfigError(f"--seeds={','.join(values.seeds)!r} must be whole numbers, as 0,1,2.")
  if any(argument.lstrip("-").startswith("config.seed") for argument in overrides):
    raise ConfigError("--config.seed is not for a comparison; give --seeds=0,1,2.")
  if not 1 <= values.jobs <= _MOST_JOBS:
    raise ConfigError(f"--jobs={values.jobs} must be 1 or more, and {_MOST_JOBS} at most.")
  for name, given in (("methods", values.methods), ("seeds", [seed.lstrip("0") for seed in values.seeds])):
    if len(set(given)) < len(given):
      raise ConfigError(f"--{name}={','.join(values[name].value)!r} names one twice.")
  workdir = Path(values.workdir or f"runs/compare_{values.data}")
  seeds = [int(seed) for seed in values.seeds]
  return Options(values.methods, seeds, values.data, values.suite, overrides, workdir, values.jobs, values.track)


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the program on command-line arguments and returns its exit code; bad input is one line on stderr."""
  arguments = sys.argv[1:] if arguments is None else arguments
  try:
    options = parse(arguments)
    if options is None:
      print(__doc__.strip())
      return 0
    from lrat_jax.compare import runner

    return runner.run(options, arguments)
  except (ConfigError, CorruptFileError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  sys.exit(main())
