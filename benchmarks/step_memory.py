"""What a train step holds besides its arguments and results: whole, and in parts (`train.microbatches`).

    python -m benchmarks.step_memory --model resnet18_16 --output step_memory.json

Nothing runs: the compiler says the bytes of temporaries of LRAT's step on one device, one PGD variant in the pair.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from benchmarks import common
from lrat_jax import data
from lrat_jax.config import default as config_lib
from lrat_jax.core import sharding
from lrat_jax.training import loop
from lrat_jax.training import step as step_lib
from lrat_jax.training.phases import Phase

PHASE = Phase(use_local_weights=True, use_global_weights=False)


def compiled_step(model: str, batch_size: int, **fields) -> jax.stages.Compiled:
  """LRAT's step on one device, of images as CIFAR-10's."""
  config = config_lib.default("lrat", "cifar10")
  config.update_from_flattened_dict(
    {"model.name": model, "data.batch_size": batch_size, "local_weights.kind": "lrat", **fields}
  )
  images, labels = np.zeros((batch_size, 32, 32, 3), np.uint8), np.zeros(batch_size, np.int32)
  split = data.Split(images, labels, np.arange(batch_size, dtype=np.int32))
  experiment = loop.build(config, data.Dataset(split, split, split, common.NUM_CLASSES), sharding.make_mesh(1))
  program = step_lib.train_step_program(
    config, experiment.model, experiment.optimizer, experiment.total_steps, experiment.mesh, PHASE
  )
  batch = sharding.shard_batch(experiment.mesh, split._asdict())
  keys = sharding.replicate(experiment.mesh, step_lib.root_keys(config))
  return program.lower(keys, experiment.abstract_state(), batch).compile()


def main() -> None:
  options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  options.add_argument("--model", default="resnet18_16")
  options.add_argument("--batch_size", type=int, default=256)
  options.add_argument("--microbatches", type=int, nargs="+", default=[1, 2, 4, 8])
  options.add_argument("--output", type=Path)
  arguments = options.parse_args()
  rows, whole = [], None
  for count in arguments.microbatches:
    used = compiled_step(arguments.model, arguments.batch_size, **{"train.microbatches": count}).memory_analysis()
    whole = whole or used.temp_size_in_bytes
    row = {"microbatches": count, "temporaries MiB": used.temp_size_in_bytes / 2**20}
    rows.append(row | {"of the whole batch's": used.temp_size_in_bytes / whole})
  title = f"LRAT's step on {arguments.model}, batch {arguments.batch_size}, one device"
  common.report(title, rows, arguments.output)


if __name__ == "__main__":
  main()
