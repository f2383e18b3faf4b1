"""Runs of the program as processes of their own: started, waited for, killed, and what they come to in the end."""

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
# LRAT and GAIRAT on digits, a matter of seconds.
RUN = (
  f"--config={ROOT}/configs/lrat_irat.py:digits,suite=pgd",
  *(f"--config.{name}={value}" for name, value in SMALL.items()),
)
# The same, saved every fourth step.
ARGUMENTS = (*RUN, "--config.train.checkpoint_every_steps=4")
_PATIENCE_S = 300


def start(workdir, *more, devices=2, cwd=ROOT, arguments=ARGUMENTS, **environment):
  """The program on `arguments` and `more`; its output is kept for `end`."""
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
  """One run of as many processes as workdirs are given, on CPU collectives."""
  others = [f"--coordinator=localhost:{free_port()}", f"--num_processes={len(workdirs)}"]
  return [
    start(workdir, *more, *others, f"--process_id={index}", devices=devices, **options)
    for index, workdir in enumerate(workdirs)
  ]


def end(process):
  """(exit code, stdout, stderr) of a program that ends by itself."""
  out, errors = process.communicate(timeout=_PATIENCE_S)
  return process.returncode, out, errors


def finish(workdir, *more, **options):
  """Runs the program to its end, which must be a good one; its stdout."""
  code, out, errors = end(start(workdir, *more, **options))
  assert code == 0, errors
  return out


def wait_for_rows(process, workdir, rows):
  """Waits until metrics.jsonl holds so many rows."""
  path, deadline = Path(workdir, "metrics.jsonl"), time.monotonic() + _PATIENCE_S
  while not (path.exists() and path.read_text().count("\n") >= rows):
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.005)


def kill_after(workdir, rows, *more, **options):
  """Runs until metrics.jsonl holds so many rows, then kills without warning."""
  process = start(workdir, *more, **options)
  wait_for_rows(process, workdir, rows)
  process.kill()
  process.communicate()


def outcome(workdir):
  """All that a run is: its last step, that checkpoint's arrays, the rows without their timing, the recorded weights."""
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
  """Equal parameters and weights to float32's tolerance."""
  (step, state, _, weights), (step_other, state_other, _, weights_other) = (outcome(path) for path in (workdir, other))
  assert step == step_other == steps
  numbers = lambda tree: jax.tree.map(lambda leaf: leaf if leaf.dtype.kind in "biuf" else np.zeros(0), tree)
  for one, two in ((state, state_other), (weights, weights_other)):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), numbers(one), numbers(two))
