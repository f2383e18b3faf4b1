"""The cost of a long run besides its steps: the time for saving, and whether memory stays constant.

  python -m benchmarks.endurance --config=configs/lrat.py
  python -m benchmarks.endurance --config=configs/lrat.py --memory_steps=2000

Trains in a temporary folder, alternately with and without checkpoints, after a first run that compiles. With
--memory_steps it trains once, for that number of steps, and prints the memory of the process at intervals.
"""

import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from lrat_jax import data
from lrat_jax.core import malloc, sharding
from lrat_jax.training import checkpoints, loop
from lrat_jax.training import experiment as experiment_lib

_PAGE = resource.getpagesize()


def _experiment(config):
  dataset = data.load_for(config.data)
  sharding.use_cpu_cores(config.data.batch_size, config.eval.batch_size)
  malloc.disable_malloc_trim()
  return experiment_lib.build(config, dataset, sharding.make_mesh())


def _seconds(experiment, *, saving):
  """(seconds of a whole training run, seconds of these spent waiting for saves, number of saves)."""
  waited = []

  def timed(method):
    def call(self, *arguments):
      start = time.perf_counter()
      result = method(self, *arguments) if saving else None
      waited.append(time.perf_counter() - start)
      return result

    return call

  with (
    tempfile.TemporaryDirectory() as folder,
    mock.patch.object(checkpoints.Checkpoints, "save", timed(checkpoints.Checkpoints.save)),
    mock.patch.object(checkpoints.Checkpoints, "__exit__", timed(checkpoints.Checkpoints.__exit__)),
  ):
    start = time.perf_counter()
    loop.train(experiment, Path(folder), Console(quiet=True))
    return time.perf_counter() - start, sum(waited), len(waited) - 1


def _compare(experiment, rounds):
  _seconds(experiment, saving=False)
  ratios = []
  for _ in range(rounds):
    plain, _, _ = _seconds(experiment, saving=False)
    whole, waited, saves = _seconds(experiment, saving=True)
    ratios.append(whole / plain)
    print(f"without saving {plain:.2f} s, with {saves} saves {whole:.2f} s, {waited:.2f} s of it waiting for them")
  print(f"saving multiplies the time by {statistics.median(ratios):.3f} (median of {rounds} rounds)")


def _resident_mib():
  return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 2**20


def _memory(experiment, steps):
  """Trains for `steps` steps and prints the resident memory after every tenth of them."""
  taken = iter(range(1, steps + 1))

  def note():
    step = next(taken)
    if step % (steps // 10) == 0:
      print(f"step {step}: {_resident_mib():.0f} MiB")
    return step == steps

  with tempfile.TemporaryDirectory() as folder:
    try:
      loop.train(experiment, Path(folder), Console(quiet=True), stop=note)
    except loop.stopping.Preempted as stopped:
      print(stopped)


def main():
  config_flags.DEFINE_config_file("config", None, "the run")
  flags.DEFINE_integer("rounds", 3, "of both")
  flags.DEFINE_integer("memory_steps", 0, "print memory over so many steps instead")
  flags.FLAGS(sys.argv)
  config = flags.FLAGS.config
  steps = flags.FLAGS.memory_steps
  if steps:
    config.train.epochs = max(config.train.epochs, steps // 10)
  experiment = _experiment(config)
  if steps:
    _memory(experiment, steps)
  else:
    _compare(experiment, flags.FLAGS.rounds)


if __name__ == "__main__":
  main()
