"""The cost of the training loop besides the device's work, by the number of steps in a call (`train.steps_per_call`).

    python -m benchmarks.step_calls --output step_calls.json

"loop": the time of a step in `loop.train`, with its batches, logs and record of weights. "device": the time of a step
when the same compiled call is repeated on batches that are on the devices, measured before the loop and after it.
"host" is the difference. Each time is the median over the intervals between two rows of metrics, for the small CNN
in adversarial training with one step of PGD. Batches are small, because the difference has the noise of both times.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from benchmarks import common
from lrat_jax import data
from lrat_jax.config import default as config_lib
from lrat_jax.training import experiment as experiment_lib
from lrat_jax.training import loop, phases
from lrat_jax.training import step as step_lib


def _experiment(steps_per_call: int, row: int, stretches: int, batch_size: int) -> experiment_lib.Experiment:
  shape, _ = common.SETTINGS["cnn"]
  count = row * stretches * batch_size
  config = config_lib.default("at", "fashion_mnist")
  config.update_from_flattened_dict(
    {
      "data.batch_size": batch_size,
      "train.epochs": 1,
      "train.steps_per_call": steps_per_call,
      "train.log_every_steps": row,
      "train.checkpoint_every_steps": 10**6,
      "train_attacks.pgd.num_steps": 1,
      "validation_attack.num_steps": 1,
    }
  )
  images = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
  labels = (np.arange(count) % common.NUM_CLASSES).astype(np.int32)
  split = data.Split(images, labels, np.arange(count, dtype=np.int32))
  few = data.Split(images[:256], labels[:256], np.arange(256, dtype=np.int32))
  return experiment_lib.build(config, data.Dataset(split, few, few, common.NUM_CLASSES), common.make_mesh("cnn"))


def _stretches(times: dict[int, float], row: int) -> Iterator[float]:
  """Seconds of a step in each interval between the first calls after two successive rows of metrics."""
  first = min(times)
  for start in range(first + row, max(times) - row + 1, row):
    yield (times[start + row] - times[start]) / row


def _loop_seconds(experiment: experiment_lib.Experiment) -> float:
  times: dict[int, float] = {}
  train = experiment.config.train

  def record() -> bool:
    times[(len(times) + 1) * train.steps_per_call] = time.perf_counter()
    return False

  with tempfile.TemporaryDirectory() as workdir:
    loop.train(experiment, Path(workdir), Console(quiet=True), stop=record)
  return statistics.median(_stretches(times, train.log_every_steps))


def _device_seconds(experiment: experiment_lib.Experiment) -> float:
  config = experiment.config
  size, row = config.train.steps_per_call, config.train.log_every_steps
  make = (config, experiment.model, experiment.optimizer, experiment.total_steps, experiment.mesh)
  step = step_lib.make_train_step(*make, phases.phase_at(config, 0), size)
  place = data.make_device_put(experiment.training_source, experiment.mesh, config.data.placement)
  batches = [place(np.arange(i * config.data.batch_size, (i + 1) * config.data.batch_size)) for i in range(size)]
  state, seconds = experiment.initial_state(), []
  for _ in range(1 + experiment.total_steps // row):
    start, losses = time.perf_counter(), []
    for _ in range(row // size):
      state, output = step(state, *batches)
      losses.append(output.loss)
      jax.block_until_ready(losses[-loop.MOST_IN_FLIGHT :][:1])
    jax.block_until_ready((state, output))
    seconds.append((time.perf_counter() - start) / row)
  return statistics.median(seconds[1:])


def main() -> None:
  options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  options.add_argument("--steps_per_call", type=int, nargs="+", default=[1, 5, 20], help="each divides --row")
  options.add_argument("--row", type=int, default=20, help="steps between two rows of metrics")
  options.add_argument("--stretches", type=int, default=20, help="so many rows; the first holds compilation")
  options.add_argument("--batch_size", type=int, default=32)
  options.add_argument("--output", type=Path)
  arguments = options.parse_args()
  rows = []
  for size in arguments.steps_per_call:
    experiment = _experiment(size, arguments.row, arguments.stretches, arguments.batch_size)
    before, looped, after = (measure(experiment) for measure in (_device_seconds, _loop_seconds, _device_seconds))
    looped, device = 1e3 * looped, 1e3 * (before + after) / 2
    rows.append({"steps a call": size, "loop ms": looped, "device ms": device, "host ms": looped - device})
  common.report(f"A step of the small CNN, a row of metrics every {arguments.row}", rows, arguments.output)


if __name__ == "__main__":
  main()
