"""What a train step holds besides arguments and results: whole, in parts (`train.microbatches`), with `model.remat`.

    python -m benchmarks.step_memory --model resnet18_16 --output step_memory.json
    python -m benchmarks.step_memory --microbatches 1 4 --remat False True --topology v5e:2x2

Nothing runs: the compiler says the bytes of temporaries of LRAT's step on a device, one PGD variant in the pair.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from benchmarks import common
from lrat_jax import data
from lrat_jax.config import default as config_lib
from lrat_jax.core import sharding, topologies
from lrat_jax.training import loop
from lrat_jax.training import step as step_lib
from lrat_jax.training.phases import Phase

PHASE = Phase(use_local_weights=True, use_global_weights=False)
SHAPE = (32, 32, 3)


def _compiled_step(mesh: Mesh, fields) -> jax.stages.Compiled:
  """LRAT's step on images as CIFAR-10's."""
  config = config_lib.default("lrat", "cifar10")
  config.update_from_flattened_dict({"local_weights.kind": "lrat", **fields})
  few = data.Split(np.zeros((1, *SHAPE), np.uint8), np.zeros(1, np.int32), np.zeros(1, np.int32))
  experiment = loop.build(config, data.Dataset(few, few, few, common.NUM_CLASSES), mesh)
  program = step_lib.train_step_program(config, experiment.model, experiment.optimizer, 1, mesh, PHASE)
  on = lambda spec: lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))
  keys = jax.tree.map(on(sharding.REPLICATED), jax.eval_shape(lambda: step_lib.root_keys(config)))
  size = config.data.batch_size
  rows = {"images": ((size, *SHAPE), jnp.uint8), "labels": ((size,), jnp.int32), "indices": ((size,), jnp.int32)}
  batch = {name: on(sharding.BATCHED)(jax.ShapeDtypeStruct(*row)) for name, row in rows.items()}
  return program.lower(keys, experiment.abstract_state(), batch).compile()


def main() -> None:
  options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  options.add_argument("--model", default="resnet18_16")
  options.add_argument("--batch_size", type=int, default=256, help="of a device")
  options.add_argument("--microbatches", type=int, nargs="+", default=[1, 2, 4, 8])
  options.add_argument("--remat", nargs="+", default=["False"], choices=["False", "True"])
  options.add_argument("--topology", help="TPUs to compile for; else one device that is here")
  options.add_argument("--output", type=Path)
  arguments = options.parse_args()
  mesh = topologies.described_mesh(arguments.topology) if arguments.topology else sharding.make_mesh(1)
  shared = {"model.name": arguments.model, "data.batch_size": arguments.batch_size * mesh.size}
  rows, whole = [], None
  for remat in arguments.remat:
    for count in arguments.microbatches:
      fields = shared | {"train.microbatches": count, "model.remat": remat == "True"}
      used = _compiled_step(mesh, fields).memory_analysis().temp_size_in_bytes
      whole = whole or used
      row = {
        "remat": remat,
        "microbatches": count,
        "temporaries MiB": used / 2**20,
        "relative to the first": used / whole,
      }
      rows.append(row)
  kind = mesh.devices.flat[0].device_kind
  common.report(
    f"LRAT's step on {arguments.model}, batches of {arguments.batch_size} a device, {kind}", rows, arguments.output
  )


if __name__ == "__main__":
  main()
