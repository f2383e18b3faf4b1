"""Shared code of the benchmarks: timing of alternating sides, medians, one table and one JSON file."""

import argparse
import functools
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from rich.console import Console
from rich.table import Table

from lrat_jax import attacks, data, models
from lrat_jax.config import default as config_lib
from lrat_jax.core import malloc, sharding
from lrat_jax.models import layers
from lrat_jax.training import experiment as experiment_lib
from lrat_jax.training import phases
from lrat_jax.training import step as step_lib

# Image shape and global batch size of the networks that are measured.
SETTINGS = {"cnn": ((28, 28, 1), 128), "resnet18": ((32, 32, 3), 64), "wide_resnet_34_10": ((32, 32, 3), 64)}
NUM_CLASSES = 10
LEARNING_RATE = 0.01


def parser(description: str, models: Sequence[str]) -> argparse.ArgumentParser:
  """The options that all benchmarks take; the first model is the default."""
  options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  options.add_argument("--model", choices=models, default=models[0])
  options.add_argument("--rounds", type=int, default=5, help="timed rounds of each side; the median counts")
  options.add_argument("--output", type=Path, help="a JSON file for the table")
  return options


def make_mesh(name: str):
  """The devices that the program itself would use for one of the networks; sets up memory allocation as it does."""
  sharding.use_cpu_cores(SETTINGS[name][1])
  malloc.disable_malloc_trim()
  return sharding.make_mesh()


def _time(call: Callable[[], Any]) -> float:
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def _medians(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
  seconds: dict[str, list[float]] = {name: [] for name in sides}
  for round_ in range(rounds + 1):
    for name, side in sides.items():
      taken = side()
      if round_ > 0:
        seconds[name].append(taken)
  return {name: statistics.median(times) for name, times in seconds.items()}


def alternate(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
  """Median seconds of each side. The sides take turns for `rounds` rounds, after one round that is not counted."""
  return _medians({name: functools.partial(_time, side) for name, side in sides.items()}, rounds)


def _serve(make_side: Callable[[], Callable[[], Any]], pipe) -> None:
  call = make_side()
  while pipe.recv():
    pipe.send(_time(call))


def alternate_processes(makers: Mapping[str, Callable[[], Callable[[], Any]]], rounds: int) -> dict[str, float]:
  """Like `alternate`, but each side is created and kept in its own process, as its users run it.

  The sides then share no threads, memory or devices. One runs at a time; the others block without using a core.
  """
  context = multiprocessing.get_context("spawn")
  processes, sides = [], {}
  for name, make_side in makers.items():
    here, there = context.Pipe()
    processes.append(context.Process(target=_serve, args=(make_side, there), daemon=True))
    processes[-1].start()
    there.close()  # so that a side that crashes raises EOFError here, instead of blocking forever

    def run(pipe=here):
      pipe.send(True)
      return pipe.recv()

    sides[name] = run
  try:
    return _medians(sides, rounds)
  finally:
    for process in processes:
      process.terminate()


def classifier(name: str, mesh, batch_size: int | None = None, dtype: str = "float32"):
  """(model, variables, images, labels, keys) on a mesh: variables as initialised, random images."""
  shape, default_batch = SETTINGS[name]
  batch = batch_size or default_batch
  model = models.create(name, NUM_CLASSES, dtype=dtype, axis_name=sharding.AXIS)
  images = jax.random.uniform(jax.random.key(1), (batch, *shape))
  variables = {"batch_stats": {}} | jax.jit(model.init)(jax.random.key(0), images[:1])
  rows = {"images": images, "labels": jnp.arange(batch, dtype=jnp.int32) % NUM_CLASSES}
  keys = jax.device_put(jax.random.split(jax.random.key(2), batch), jax.sharding.NamedSharding(mesh, sharding.BATCHED))
  rows = sharding.shard_batch(mesh, jax.tree.map(np.asarray, rows))
  return model, sharding.replicate(mesh, variables), rows["images"], rows["labels"], keys


def _plain_convolution(x, kernel, strides=(1, 1), padding=((1, 1), (1, 1))):
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def with_plain_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
  """A function of one of the networks, changed to use `lax`'s convolutions, as in a user's own network."""

  def call(*args: Any, **kwargs: Any) -> Any:
    with mock.patch.object(layers, "conv2d", _plain_convolution):
      return function(*args, **kwargs)

  return call


def as_in_training(name: str, attack: attacks.Attack) -> attacks.Attack:
  """An attack on one of the networks as a train step runs it: in microbatches that suit the device."""
  height, width, _ = SETTINGS[name][0]
  return attacks.microbatch(attack, models.microbatch_size(name, height, width, platform=jax.devices()[0].platform))


def over_devices(function: Callable[..., Any], mesh, num_batched: int) -> Callable[..., Any]:
  """`function(variables, *batched)`, jitted, with the batched arguments and the result sharded over the mesh."""
  specs = (sharding.REPLICATED, *[sharding.BATCHED] * num_batched)
  return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=sharding.BATCHED))


def lrat_experiment(name: str, mesh) -> experiment_lib.Experiment:
  """LRAT with the CIFAR-10 preset's attack for one of the networks, on images of random pixels."""
  shape, batch = SETTINGS[name]
  config = config_lib.default("lrat", "cifar10")
  config.update_from_flattened_dict(
    {
      "model.name": name,
      "model.mean": (0.0,),
      "model.std": (1.0,),
      "data.batch_size": batch,
      "data.flip": False,
      "data.crop_padding": 0,
      "local_weights.kind": "lrat",
      "optimizer.schedule": "constant",
      "optimizer.learning_rate": LEARNING_RATE,
    }
  )
  images = np.random.default_rng(0).uniform(size=(2 * batch, *shape)).astype(np.float32)
  labels = (np.arange(2 * batch) % NUM_CLASSES).astype(np.int32)
  split = data.Split(images, labels, np.arange(2 * batch, dtype=np.int32))
  return experiment_lib.build(config, data.Dataset(split, split, split, NUM_CLASSES), mesh)


def lrat_step(experiment: experiment_lib.Experiment):
  """(compiled step, function that runs one step, initial variables, batch on the devices)."""
  phase = phases.Phase(use_local_weights=True, use_global_weights=False)
  step = step_lib.make_train_step(
    experiment.config, experiment.model, experiment.optimizer, experiment.total_steps, experiment.mesh, phase
  )
  state = experiment.initial_state()
  batch = experiment.dataset.train.take(np.arange(experiment.config.data.batch_size))
  batch = sharding.shard_batch(experiment.mesh, batch._asdict())
  variables = sharding.replicate(experiment.mesh, jax.tree.map(np.asarray, state.variables))
  compiled = step.func.lower(*step.args, state, batch).compile()
  current = [state]

  def take():
    current[0], output = compiled(*step.args, current[0], batch)
    return output.loss, current[0]

  return compiled, take, variables, batch


def abstract_step(mesh: Mesh, fields: Mapping[str, Any], shape: tuple[int, ...] = (32, 32, 3)):
  """LRAT's step with the CIFAR-10 preset, to be traced or compiled: (experiment, program, its abstract arguments)."""
  config = config_lib.default("lrat", "cifar10")
  config.update_from_flattened_dict({"local_weights.kind": "lrat", **fields})
  few = data.Split(np.zeros((1, *shape), np.uint8), np.zeros(1, np.int32), np.zeros(1, np.int32))
  experiment = experiment_lib.build(config, data.Dataset(few, few, few, NUM_CLASSES), mesh)
  phase = phases.Phase(use_local_weights=True, use_global_weights=False)
  program = step_lib.train_step_program(config, experiment.model, experiment.optimizer, 1, mesh, phase)
  on = lambda spec: lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))
  keys = jax.tree.map(on(sharding.REPLICATED), jax.eval_shape(lambda: step_lib.root_keys(config)))
  size = config.data.batch_size
  rows = {"images": ((size, *shape), jnp.uint8), "labels": ((size,), jnp.int32), "indices": ((size,), jnp.int32)}
  batch = {name: on(sharding.BATCHED)(jax.ShapeDtypeStruct(*row)) for name, row in rows.items()}
  return experiment, program, (keys, experiment.abstract_state(), batch)


def report(title: str, rows: Sequence[Mapping[str, Any]], output: Path | None) -> None:
  """Prints the rows as a table, and writes them to `output` with a description of the machine."""
  table = Table(title=title, title_justify="left")
  columns = list(dict.fromkeys(column for row in rows for column in row))
  for column in columns:
    table.add_column(column, justify="right")
  for row in rows:
    values = (row.get(column, "") for column in columns)
    table.add_row(*(f"{value:,.3g}" if isinstance(value, float) and value < 100 else _text(value) for value in values))
  Console().print(table)
  if output:
    machine = {
      "device": jax.devices()[0].device_kind,
      "num_devices": jax.device_count(),
      "jax": jax.__version__,
      "python": platform.python_version(),
      "processor": platform.processor() or platform.machine(),
    }
    output.write_text(json.dumps({"title": title, "machine": machine, "rows": rows}, indent=2) + "\n")


def _text(value: Any) -> str:
  return f"{value:,.0f}" if isinstance(value, float) else str(value)
