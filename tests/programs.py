"""Runs of the program in separate processes: starts them, waits for them, kills them, and compares their results."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from lrat_jax.training.checkpoints import Checkpoints
from tests.helpers import SMALL

ROOT = Path(__file__).parent.parent
# LRAT and GAIRAT on digits; takes only seconds.
RUN = (
  f"--config={ROOT}/configs/lrat_irat.py:digits,suite=pgd",
  *(f"--config.{name}={value}" for name, value in SMALL.items()),
)
# The same, with a checkpoint every fourth step.
ARGUMENTS = (*RUN, "--config.train.checkpoint_every_steps=4")
_PATIENCE_S = 300


def start(workdir, *more, devices=2, cwd=ROOT, arguments=ARGUMENTS, **environment):
  """Starts the program with `arguments` and `more`; its output is captured for `end`."""
  return subprocess.Popen(
    [sys.executable, "-m", "lrat_jax.main", *arguments, f"--workdir={workdir}", *more],
    cwd=cwd,
    env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)} | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def free_port():
  with socket.socket() as server:
    server.bind(("localhost", 0))
    return server.getsockname()[1]


def start_together(workdirs, *more, devices, **options):
  """Starts one run with one process per workdir, on CPU collectives."""
  others = [f"--coordinator=localhost:{free_port()}", f"--num_processes={len(workdirs)}"]
  return [
    start(workdir, *more, *others, f"--process_id={index}", devices=devices, **options)
    for index, workdir in enumerate(workdirs)
  ]


def end(process):
  """Waits until a program ends by itself; returns (exit code, stdout, stderr)."""
  out, errors = process.communicate(timeout=_PATIENCE_S)
  return process.returncode, out, errors


def finish(workdir, *more, **options):
  """Runs the program to its end and returns its stdout; its exit code must be 0."""
  code, out, errors = end(start(workdir, *more, **options))
  assert code == 0, errors
  return out


def wait_for_rows(process, workdir, rows):
  """Waits until metrics.jsonl has at least `rows` rows."""
  path, deadline = Path(workdir, "metrics.jsonl"), time.monotonic() + _PATIENCE_S
  while not (path.exists() and path.read_text().count("\n") >= rows):
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.005)


def kill_after(workdir, rows, *more, **options):
  """Runs the program until metrics.jsonl has at least `rows` rows, then kills it with SIGKILL."""
  process = start(workdir, *more, **options)
  wait_for_rows(process, workdir, rows)
  process.kill()
  process.communicate()


def outcome(workdir):
  """The result of a run: (last step, arrays of its checkpoint, metrics without their timing, recorded weights)."""
  with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
    step = checkpoints.latest_step()
    state = checkpoints.read(step)
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  for row in rows:
    row.pop("images_per_second", None)
  weights = {}
  for path in sorted((workdir / "weights").glob("*.npz")):
    with np.load(path) as arrays:
      weights[path.name] = dict(arrays)
  return step, state, rows, weights


def assert_trained_alike(workdir, other, steps=34):
  """Asserts that both runs took `steps` steps to the same parameters and weights, up to float32's tolerance."""
  (step, state, _, weights), (step_other, state_other, _, weights_other) = (outcome(path) for path in (workdir, other))
  assert step == step_other == steps
  numbers = lambda tree: jax.tree.map(lambda leaf: leaf if leaf.dtype.kind in "biuf" else np.zeros(0), tree)
  for one, two in ((state, state_other), (weights, weights_other)):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), numbers(one), numbers(two))
