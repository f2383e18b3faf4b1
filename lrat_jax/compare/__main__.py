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

import contextlib
import datetime
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from rich.console import Console

from lrat_jax.analysis import plots
from lrat_jax.compare import methods
from lrat_jax.compare import summary as summary_lib
from lrat_jax.config import command_line
from lrat_jax.config.default import PRESETS
from lrat_jax.config.suites import SUITES
from lrat_jax.core import files
from lrat_jax.core.errors import ConfigError
from lrat_jax.core.text import seconds_text
from lrat_jax.evaluation import results as results_lib
from lrat_jax.training import metric_writers
from lrat_jax.training import workdir as workdir_lib

FAILED, BAD_INPUT, NOT_FINITE = 1, 2, 3
_MOST_JOBS = 1000


class Options(NamedTuple):
  """What was asked for."""

  methods: list[methods.MethodSpec]
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
  chosen = [methods.parse(text) for text in values.methods]
  seeds = [int(seed) for seed in values.seeds]
  metric_writers.find(values.track)
  return Options(chosen, seeds, values.data, values.suite, overrides, workdir, values.jobs, values.track)


def _core_shares(jobs: int) -> list[set[int]]:
  """For each job the CPU cores that are its own; empty sets where a system cannot say."""
  if not hasattr(os, "sched_getaffinity"):
    return [set()] * jobs
  cores = sorted(os.sched_getaffinity(0))
  return [set(cores[job::jobs]) or {cores[job % len(cores)]} for job in range(jobs)]


def _execute(run: methods.Run, more: Sequence[str], cores: set[int], processes: list[subprocess.Popen]) -> int:
  """Runs one program to its end, with its output in the workdir's log.txt, and returns its exit code."""
  run.workdir.mkdir(parents=True, exist_ok=True)
  with (run.workdir / "log.txt").open("ab") as log:
    process = subprocess.Popen([*run.process, *more], stdout=log, stderr=subprocess.STDOUT)
  processes.append(process)
  if cores:
    os.sched_setaffinity(process.pid, cores)
  return process.wait()


def _run_all(runs: Sequence[methods.Run], jobs: int, more: Sequence[str], console: Console) -> list[int]:
  """Runs what is missing with `more` options, `jobs` at a time, and returns the exit codes of those that failed."""
  missing = [run for run in runs if run.results() is None]
  console.print(f"{len(runs)} runs, {len(runs) - len(missing)} of them done before.")
  shares: queue.Queue[set[int]] = queue.Queue()
  for share in _core_shares(jobs):
    shares.put(share)
  failed, processes = [], []

  def execute(run: methods.Run) -> None:
    share, start = shares.get(), time.perf_counter()
    try:
      code = _execute(run, more, share, processes)
    finally:
      shares.put(share)
    results = run.results()
    seconds = seconds_text(time.perf_counter() - start)
    if code or results is None:
      failed.append(code or FAILED)
      last = (run.workdir / "log.txt").read_text(errors="replace").strip().rpartition("\n")[2]
      text = f"{run.name}: FAILED in {seconds} with exit code {code}: {last}"
      console.print(text, highlight=False, markup=False, soft_wrap=True)
      return
    worst = f"{100 * results['clean']:.1f} clean, {100 * results['union']:.1f} union"
    console.print(f"{run.name}: {worst} in {seconds}", highlight=False, markup=False, soft_wrap=True)

  pool = ThreadPoolExecutor(jobs)
  try:
    list(pool.map(execute, missing))
  except BaseException:  # Ctrl-C or SIGTERM: nothing new begins, and what runs ends; it goes on from its checkpoint
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
      process.terminate()
    raise
  pool.shutdown()
  return failed


def _commit() -> str | None:
  """The commit of the code that runs, "-dirty" where files differ from it; None outside a git checkout."""
  root = Path(__file__).parent.parent.parent
  with contextlib.suppress(OSError, subprocess.CalledProcessError):
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  return None


def _provenance(arguments: Sequence[str], jobs: int) -> dict[str, Any]:
  return {
    "jobs": jobs,
    "command": shlex.join(["python", "-m", "lrat_jax.compare", *arguments]),
    "commit": _commit(),
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "environment": results_lib.environment(),
  }


def run(arguments: Sequence[str], console: Console) -> int:
  """The whole program; returns the exit code. Raises ConfigError for bad input."""
  options = parse(arguments)
  if options is None:
    print(__doc__.strip())
    return 0
  runs = methods.plan(
    options.methods,
    options.seeds,
    data=options.data,
    suite=options.suite,
    overrides=options.overrides,
    workdir=options.workdir,
  )
  for planned in runs:
    workdir_lib.check(planned.workdir, planned.config)
  track = [f"--track={','.join(options.track)}"] if options.track else []
  failed = _run_all(runs, options.jobs, track, console)
  try:
    summary = summary_lib.summarise(runs, f"{options.data}, suite {options.suite}") | _provenance(
      arguments, options.jobs
    )
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return max(failed, default=BAD_INPUT)
  text = summary_lib.markdown(summary)
  results_lib.write_json(options.workdir / "comparison.json", summary)
  with files.replacing(options.workdir / "comparison.md") as file:
    file.write(text.encode())
  plots.plot_comparison(summary).savefig(options.workdir / "comparison.png", dpi=120)
  console.print(text, highlight=False, markup=False, soft_wrap=True)
  console.print(f"Everything is in {options.workdir}: comparison.md, comparison.json, comparison.png", soft_wrap=True)
  return NOT_FINITE if NOT_FINITE in failed else FAILED if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the program on command-line arguments and returns its exit code; bad input is one line on stderr."""
  try:
    return run(sys.argv[1:] if arguments is None else arguments, Console())
  except (ConfigError, files.CorruptFileError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  sys.exit(main())
