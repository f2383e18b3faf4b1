"""Estimates an LRAT step on 1 to 4,096 TPU chips from its operations and bytes and the chips' data sheets.

    python -m benchmarks.scaling_on_paper --model wide_resnet_70_16 --batch_size 2048 --output paper.json

Nothing is compiled, and no TPU is needed. Operations are counted in the traced program, as in a rehearsal. The
gradient of P bytes is summed over n chips of a pod in 2 P (n - 1) / n / links seconds, where a chip sends `links` bytes
per second over all its links together; over p pods, a chip then sums its part of P / n bytes in 2 P / n (p - 1) / p /
network seconds. Times are lower bounds: no chip computes at its peak, and slices without wrap-around links (v5e
and v6e below 16x16) take up to twice as long to sum.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import common
from lrat_jax.core import fsdp, sharding, topologies
from lrat_jax.training import rehearsal

# The batch size of the trace; traces of other batch sizes differ only in this number.
_TRACED_IMAGES = 8


class Pod(NamedTuple):
  """How chips of one kind are connected, according to Google's pages (docs.cloud.google.com/tpu/docs/v5e, v5p and v6e).

  Attributes:
    kind: JAX's `device_kind`.
    chips: the number of chips in a pod, which are connected by links.
    links: the largest number of bytes per second that a chip sends, half of the page's "bidirectional" bandwidth.
    network: bytes per second and chip between pods.
  """

  kind: str
  chips: int
  links: float
  network: float


PODS = {
  "v5e": Pod("TPU v5 lite", 256, 200e9, 6.4e12 / 8 / 256),
  "v5p": Pod("TPU v5", 8960, 600e9, 50e9 / 8),
  "v6e": Pod("TPU v6 lite", 256, 400e9, 25.6e12 / 8 / 256),
}


class Step(NamedTuple):
  """What does not depend on the chips: operations per image, bytes of the gradient and of the state."""

  flops: float
  gradient: int
  state: int


def count(model: str, shape: tuple[int, ...] = (32, 32, 3)) -> Step:
  """The operations and bytes of a step with one PGD-10 variant in the pair."""
  mesh = sharding.make_mesh(1)
  fields = {"model.name": model, "data.batch_size": _TRACED_IMAGES}
  experiment, program, arguments = common.abstract_step(mesh, fields, shape)
  flops = rehearsal.flops(program.trace(*arguments).jaxpr.jaxpr, "tpu")
  state = experiment.abstract_state()
  gradient = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.variables["params"]))
  return Step(flops / _TRACED_IMAGES, gradient, fsdp.bytes_per_device(state))


def summing(num_bytes: float, pod: Pod, chips: int) -> float:
  """Seconds of an all-reduce over `chips` chips, which are in one pod or fill whole pods."""
  inside = min(chips, pod.chips)
  pods = -(-chips // pod.chips)
  between = 2 * num_bytes / inside * (pods - 1) / pods / pod.network
  return 2 * num_bytes * (inside - 1) / inside / pod.links + between


def row(step: Step, pod: Pod, chips: int, batch_size: int) -> dict:
  """A row of the table. A batch has at least one image per chip."""
  batch_size = max(batch_size, chips)
  flops = step.flops * batch_size / chips
  computing, adding = flops / topologies.CHIPS[pod.kind].flops, summing(step.gradient, pod, chips)
  return {
    "chips": chips,
    "images a chip": batch_size // chips,
    "TFLOP a chip": flops / 1e12,
    "computing ms": 1e3 * computing,
    "all-reduce ms": 1e3 * adding,
    "all-reduce / computing": adding / computing,
    "state MB": step.state / 1e6,
    "shared by 8, MB": step.state / 8 / 1e6 if chips >= 8 else step.state / 1e6,
    "images/s": batch_size / (computing + adding),
  }


def main() -> None:
  options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  options.add_argument("--model", default="resnet18")
  options.add_argument("--batch_size", type=int, default=1024)
  options.add_argument("--pod", choices=PODS, default="v5e")
  options.add_argument("--chips", type=int, nargs="+", default=[int(n) for n in 2 ** np.arange(0, 13, 2)])
  options.add_argument("--output", type=Path, help="a JSON file for the table")
  arguments = options.parse_args()
  step, pod = count(arguments.model), PODS[arguments.pod]
  rows = [row(step, pod, chips, arguments.batch_size) for chips in arguments.chips]
  title = f"A step of LRAT, {arguments.model}, {arguments.pod}: {step.flops / 1e9:,.1f} GFLOP an image"
  common.report(title, rows, arguments.output)


if __name__ == "__main__":
  main()
