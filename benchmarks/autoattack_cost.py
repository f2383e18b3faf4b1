"""The cost of AutoAttack besides the attacks' gradients: first call, device and host memory, small batches.

    python -m benchmarks.autoattack_cost --table=first_call     (needs PyTorch)
    python -m benchmarks.autoattack_cost --table=device_memory --output=device_memory.json

Weights and images are random, and the radius is so small that no attack succeeds, so all steps are run.

first_call     APGD-CE on 256 images of 28x28, small network with `lax`'s convolutions, including compilation;
               alternating with the same 101 gradients in a PyTorch loop.
device_memory  APGD-CE on 224x224 images, ResNet-18 of width 8: temporaries and peak of the process by `chunk_size`.
host_memory    the peak memory of the process by the number of 32x32 images, which are uint8.
survivors      the time of each attack on all images of a chunk, and on the few that remain robust.
"""

import functools
import itertools
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from benchmarks import common
from lrat_jax import attacks, models
from lrat_jax.attacks.stages import stages

EPSILON = 1e-6
CHUNKS = (8, 16, 32, 64)
COUNTS = (8_000, 32_000, 128_000)
# Steps in the tables on memory, which does not depend on their number.
FEW_STEPS = {"apgd-ce": {"num_steps": 2}}


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
  """Runs a function in its own process and returns the result."""
  with multiprocessing.get_context("spawn").Pool(1) as pool:
    return pool.apply(function, arguments)


def _model(name: str, shape: tuple[int, ...], plain: bool = False) -> Partial:
  model = models.create(name, common.NUM_CLASSES)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape)))
  return Partial(common.with_plain_convolutions(model.apply) if plain else model.apply, variables)


def _predicted(logits_fn: Callable[[Any], Any], images: np.ndarray) -> np.ndarray:
  """The model's own predictions; used as labels, so that every image is attacked."""
  predict = jax.jit(lambda x: logits_fn(x.astype(np.float32) / 255).argmax(axis=-1))
  return np.concatenate([predict(images[first : first + 50]) for first in range(0, len(images), 50)])


def _bytes(count: int, shape: tuple[int, ...]) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def _peak_mib() -> float:
  """The peak memory of this process, on Linux; `ru_maxrss` would include the process that started it."""
  status = Path("/proc/self/status").read_text()
  return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def _ours_first() -> Callable[[], Any]:
  images = _bytes(256, (28, 28, 1))
  common.make_mesh("cnn")
  logits_fn = _model("cnn", images.shape[1:], plain=True)
  labels = _predicted(logits_fn, images)
  attack = functools.partial(attacks.autoattack, attacks_to_run=["apgd-ce"], version="apgd", epsilon=EPSILON)

  def call() -> Any:
    jax.clear_caches()
    report = attack(jax.random.key(0), logits_fn, images, labels)
    assert report.robust.all()
    return report.robust

  return call


def _torch_first() -> Callable[[], Any]:
  import torch

  from benchmarks import torch_models

  model = models.create("cnn", common.NUM_CLASSES)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
  network = torch_models.classifier(model, jax.tree.map(np.asarray, variables)).eval()
  network = network.to(memory_format=torch.channels_last)
  for parameter in network.parameters():
    parameter.requires_grad_(False)
  images = torch_models.to_torch(_bytes(256, (28, 28, 1)) / np.float32(255))
  labels = network(images).argmax(dim=1)

  def call() -> None:
    points = images
    for _ in range(101):
      points = points.detach().requires_grad_()
      torch.nn.functional.cross_entropy(network(points), labels, reduction="sum").backward()
      points = points + EPSILON / 4 * points.grad.sign()

  return call


def first_call(rounds: int) -> list[dict[str, Any]]:
  makers = {"APGD-CE, compilation included": _ours_first, "101 gradients in PyTorch": _torch_first}
  seconds = common.alternate_processes(makers, rounds)
  return [{"side": name, "seconds": taken} for name, taken in seconds.items()]


def _device_row(chunk_size: int) -> dict[str, Any]:
  shape = (224, 224, 3)
  images = _bytes(2 * max(CHUNKS), shape)
  logits_fn = _model("resnet18_8", shape)
  labels = _predicted(logits_fn, images)
  keys = jax.random.split(jax.random.key(0), chunk_size)
  one = jax.jit(lambda x, y: attacks.apgd(keys, logits_fn, x, y, epsilon=EPSILON, num_steps=2, early_stop=True))
  compiled = one.lower(images[:chunk_size] / np.float32(255), labels[:chunk_size]).compile()
  before = _peak_mib()
  report = attacks.autoattack(
    jax.random.key(0), logits_fn, images, labels,
    epsilon=EPSILON, version="apgd", attacks_to_run=["apgd-ce"], overrides=FEW_STEPS,
    chunk_size=chunk_size, batch_size=chunk_size,
  )  # fmt: skip
  return {
    "chunk_size": chunk_size,
    "temporaries of a chunk, MiB": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    "peak above the start, MiB": _peak_mib() - before,
    "robust": int(report.robust.sum()),
  }


def device_memory(rounds: int) -> list[dict[str, Any]]:
  del rounds
  return [_apart(_device_row, chunk_size) for chunk_size in CHUNKS]


def _linear(weights: Any, images: Any) -> Any:
  return images.reshape(len(images), -1) @ weights


def _host_row(count: int) -> dict[str, Any]:
  images = _bytes(count, (32, 32, 3))
  logits_fn = Partial(_linear, jax.random.normal(jax.random.key(0), (32 * 32 * 3, common.NUM_CLASSES)))
  labels = _predicted(logits_fn, images)
  report = attacks.autoattack(
    jax.random.key(0), logits_fn, images, labels,
    epsilon=EPSILON, version="apgd", attacks_to_run=["apgd-ce"], overrides=FEW_STEPS,
  )  # fmt: skip
  return {"images": count, "MiB": images.nbytes / 2**20, "peak, MiB": _peak_mib(), "robust": int(report.robust.sum())}


def host_memory(rounds: int) -> list[dict[str, Any]]:
  del rounds
  rows = [_apart(_host_row, count) for count in COUNTS]
  for before, row in itertools.pairwise(rows):
    row["growth of the peak by that of the images"] = (row["peak, MiB"] - before["peak, MiB"]) / (
      row["MiB"] - before["MiB"]
    )
  return rows


def survivors(rounds: int) -> list[dict[str, Any]]:
  images = _bytes(32, (28, 28, 1)) / np.float32(255)
  logits_fn = _model("cnn", images.shape[1:])
  labels = np.asarray(logits_fn(images).argmax(axis=-1))
  keys = jax.random.split(jax.random.key(0), len(images))
  rows = []
  for stage in stages("standard", "linf", common.NUM_CLASSES, None, {"square": {"num_queries": 1000}})[0]:
    config = {"name": stage.attack, "epsilon": EPSILON, "norm": "linf", **stage.arguments}
    attack = functools.partial(attacks.from_config(config), **({"target_rank": 1} if stage.targeted else {}))
    run = jax.jit(lambda keys, x, y, attack=attack: attack(keys, logits_fn, x, y).images)
    sides = {size: functools.partial(run, keys[:size], images[:size], labels[:size]) for size in (32, 8, 2)}
    seconds = common.alternate(sides, rounds)
    named = {f"{size} images, s": seconds[size] for size in sides}
    rows.append({"attack": stage.name, **named, "two images by 32": seconds[2] / seconds[32]})
  return rows


TABLES = {table.__name__: table for table in (first_call, device_memory, host_memory, survivors)}


def main() -> None:
  options = common.parser(__doc__, ("all",))
  options.add_argument("--table", choices=sorted(TABLES), required=True)
  arguments = options.parse_args()
  rows = TABLES[arguments.table](arguments.rounds)
  common.report(arguments.table, rows, arguments.output)


if __name__ == "__main__":
  main()
