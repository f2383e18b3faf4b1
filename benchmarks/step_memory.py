"""The memory of a train step besides arguments and results: whole, in parts (`train.microbatches`), with `model.remat`.

    python -m benchmarks.step_memory --model resnet18_16 --output step_memory.json
    python -m benchmarks.step_memory --microbatches 1 4 --remat False True --topology v5e:2x2

Nothing is run: the compiler reports the bytes of temporaries on a device, for LRAT's step with one PGD variant.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from benchmarks import common
from lrat_jax.core import sharding, topologies


def _compiled(mesh: Mesh, fields: Mapping[str, Any]) -> jax.stages.Compiled:
  _, program, arguments = common.abstract_step(mesh, fields)
  return program.lower(*arguments).compile()


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
      used = _compiled(mesh, fields).memory_analysis().temp_size_in_bytes
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
