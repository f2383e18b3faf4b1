"""Kills a run on digits repeatedly at random moments and compares its final state with that of a run without kills.

  python -m tests.soak --kills=500 --jobs=2

A kill is SIGKILL at a random moment within the duration of a whole run; half of the kills are delayed from that moment
until a checkpoint is being written. A run that reaches its end is compared bit for bit, and the next one begins.
"""

import argparse
import collections
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from concurrent import futures
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import tensorboardX  # noqa: F401 (the same; it imports PyTorch where that is installed)

import lrat_jax.run  # noqa: F401 (`main` imports it late, and a process that `_start` starts needs it early)
from lrat_jax import main as program
from tests import programs

_ARGUMENTS = (
  *programs.ARGUMENTS,
  "--mode=train",
  "--config.train.epochs=4",
  "--config.train.checkpoint_every_steps=10",
)
_ENVIRONMENT = {
  "JAX_NUM_CPU_DEVICES": "2",
  # A run must find in the cache what the runs before it compiled; otherwise it is killed before training begins.
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "XLA_FLAGS": "",  # full optimisation: here, programs that compile fast but run slowly gain nothing
}


def _run_program(workdir):
  """Runs the program without output and exits with its code; the target of a separate process."""
  with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
    sys.exit(program.main([*_ARGUMENTS, f"--workdir={workdir}"]))


def _start(workdir):
  """Starts the program in a process with all modules already loaded; imports would take most of a short run."""
  context = multiprocessing.get_context("forkserver")
  process = context.Process(target=_run_program, args=(workdir,))
  process.start()
  return process


def _finish(workdir):
  process = _start(workdir)
  process.join()
  assert process.exitcode == 0, f"{workdir} ended with {process.exitcode}"


def assert_same(workdir, other, *, rows=True):
  """Asserts that two runs ended bit for bit equal: state, recorded weights and, if `rows`, the rows of metrics."""
  (step, state, lines, weights), (step_other, state_other, lines_other, weights_other) = (
    programs.outcome(path) for path in (workdir, other)
  )
  assert step == step_other, (step, step_other)
  assert not rows or lines == lines_other
  for one, two in ((state, state_other), (weights, weights_other)):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def _unfinished(workdir):
  """The checkpoints that are being written or that a kill left unfinished, a set of (name, inode)."""
  with suppress(FileNotFoundError):
    return {(entry.name, entry.inode()) for entry in os.scandir(workdir / "checkpoints") if "tmp" in entry.name}
  return set()


def _kill(process, workdir, generator, latest):
  """Waits for a random moment and kills the run; returns in which phase it was, or None if it had already ended."""
  moment = time.monotonic() + generator.uniform(0, latest)
  in_a_save = generator.random() < 0.5
  rows = (workdir / "metrics.jsonl").stat().st_size if (workdir / "metrics.jsonl").exists() else 0
  left_before = _unfinished(workdir)
  while process.is_alive() and time.monotonic() < moment + 30 * in_a_save:
    if in_a_save and time.monotonic() >= moment and _unfinished(workdir) - left_before:
      time.sleep(generator.uniform(0, 0.05))
      break
    time.sleep(0.001)
  saving = bool(_unfinished(workdir) - left_before)
  process.kill()
  process.join()
  if process.exitcode >= 0:
    return None
  if saving:
    return "while saving"
  grown = (workdir / "metrics.jsonl").exists() and (workdir / "metrics.jsonl").stat().st_size != rows
  return "while training" if grown else "while starting"


def _lane(folder, kills, seed, latest):
  """Runs one after another, with `kills` kills in total, and lets the last one end; returns counts of what happened."""
  generator, report = random.Random(seed), collections.Counter()
  left, number = kills, 0
  while left or number == 0 or (folder / f"run{number}").exists():
    workdir = folder / f"run{number}"
    process = _start(workdir)
    part = _kill(process, workdir, generator, latest) if left else None
    if part is not None:
      report[part] += 1
      left -= 1
      continue
    process.join()
    assert process.exitcode == 0, f"{workdir} ended with {process.exitcode}"
    report["runs"] += 1
    try:
      assert_same(folder.parent / "whole", workdir)
    except AssertionError as error:
      report["runs that differ"] += 1
      print(f"{workdir} differs: {error}", file=sys.stderr)
    else:
      shutil.rmtree(workdir)
    print(f"{workdir.name} of {folder.name} ended; {left} kills left there", file=sys.stderr, flush=True)
    number += 1
  return report


@mock.patch.dict(os.environ, _ENVIRONMENT)
def run(folder, *, kills, seed, jobs=1):
  """Returns {"seconds of a whole run", "kills": {phase of a run: count}, "runs", "runs that differ", "seconds"}."""
  start = time.monotonic()
  multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
  for name in ("first", "whole"):  # the first one compiles
    began = time.monotonic()
    _finish(folder / name)
    seconds = time.monotonic() - began
  shares = [kills // jobs + (index < kills % jobs) for index in range(jobs)]
  with futures.ThreadPoolExecutor(jobs) as pool:
    lanes = [
      pool.submit(_lane, folder / f"lane{index}", share, seed + index, seconds) for index, share in enumerate(shares)
    ]
    total = sum((lane.result() for lane in lanes), collections.Counter())
  return {
    "seconds of a whole run": round(seconds, 1),
    "kills": {part: total[part] for part in ("while starting", "while training", "while saving")},
    "runs": total["runs"],
    "runs that differ": total["runs that differ"],
    "seconds": round(time.monotonic() - start),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--kills", type=int, default=500)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    report = run(Path(folder), kills=options.kills, seed=options.seed, jobs=options.jobs)
  print(json.dumps(report, indent=2))
  return int(report["runs that differ"] > 0)


if __name__ == "__main__":
  sys.exit(main())
