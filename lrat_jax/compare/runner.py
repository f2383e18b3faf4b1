"""Runs the methods of a comparison in processes, some at a time, and writes the table and plot of the results."""

import datetime
import os
import queue
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console

from lrat_jax import data
from lrat_jax.analysis import plots
from lrat_jax.compare import methods
from lrat_jax.compare import summary as summary_lib
from lrat_jax.compare.options import BAD_INPUT, NOT_FINITE, Options
from lrat_jax.core import files, provenance
from lrat_jax.core.errors import ConfigError
from lrat_jax.core.text import seconds_text
from lrat_jax.evaluation import results as results_lib
from lrat_jax.training import metric_writers
from lrat_jax.training import workdir as workdir_lib

FAILED = 1


def _core_shares(jobs: int) -> list[set[int]]:
  """The CPU cores assigned to each job; empty sets if the operating system does not support it."""
  if not hasattr(os, "sched_getaffinity"):
    return [set()] * jobs
  cores = sorted(os.sched_getaffinity(0))
  return [set(cores[job::jobs]) or {cores[job % len(cores)]} for job in range(jobs)]


def _execute(run: methods.PlannedRun, more: Sequence[str], cores: set[int], processes: list[subprocess.Popen]) -> int:
  """Runs one process to its end, appends its output to the workdir's log.txt, and returns its exit code."""
  run.workdir.mkdir(parents=True, exist_ok=True)
  with (run.workdir / "log.txt").open("ab") as log:
    process = subprocess.Popen([*run.process, *more], stdout=log, stderr=subprocess.STDOUT)
  processes.append(process)
  if cores:
    os.sched_setaffinity(process.pid, cores)
  return process.wait()


def _run_all(runs: Sequence[methods.PlannedRun], jobs: int, more: Sequence[str], console: Console) -> list[int]:
  """Executes missing runs with the options `more`, `jobs` at a time, and returns the exit codes of failed runs."""
  missing = [run for run in runs if run.results() is None]
  console.print(f"{len(runs)} runs, {len(runs) - len(missing)} of them already finished.")
  shares: queue.Queue[set[int]] = queue.Queue()
  for share in _core_shares(jobs):
    shares.put(share)
  failed: list[int] = []
  processes: list[subprocess.Popen] = []

  def execute(run: methods.PlannedRun) -> None:
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
  except BaseException:  # Ctrl-C or SIGTERM: starts no new runs and stops the current ones, which can be resumed
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
      process.terminate()
    raise
  pool.shutdown()
  return failed


def _check_data(runs: Sequence[methods.PlannedRun]) -> None:
  """Raises ConfigError if an earlier run in a workdir used other data under the same name."""
  loaded: dict[str, data.Dataset] = {}
  for run in runs:
    if not (run.workdir / "config.json").exists():
      continue
    source = str(run.config.data)
    try:
      loaded[source] = loaded[source] if source in loaded else data.load_for(run.config.data)
    except data.DataError as error:
      raise ConfigError(f"config.{error}") from None
    workdir_lib.data_of_run(run.workdir, loaded[source])


def _provenance(arguments: Sequence[str], jobs: int) -> dict[str, Any]:
  return {
    "jobs": jobs,
    "command": shlex.join(["python", "-m", "lrat_jax.compare", *arguments]),
    **provenance.commit(),
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "environment": results_lib.environment(),
  }


def run(options: Options, arguments: Sequence[str]) -> int:
  """Executes missing runs, writes the comparison, and returns the exit code. Raises ConfigError for bad input."""
  console = Console()
  metric_writers.find(options.track)
  runs = methods.plan(
    [methods.parse(text) for text in options.methods],
    options.seeds,
    data=options.data,
    suite=options.suite,
    overrides=options.overrides,
    workdir=options.workdir,
  )
  for planned in runs:
    workdir_lib.check(planned.workdir, planned.config)
  _check_data(runs)
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
