"""Estimates the cost of a run without running it: shapes, parameters, steps, memory, and time.

The step of every phase is compiled and run a few times on the run's own devices and data; nothing is written.
"""

import time
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from lrat_jax import data
from lrat_jax.config import attack_entries
from lrat_jax.config import default as config_lib
from lrat_jax.core import fsdp
from lrat_jax.core.text import seconds_text
from lrat_jax.training import experiment as experiment_lib
from lrat_jax.training import phases
from lrat_jax.training import step as step_lib

_TIMED_STEPS = 5


class _PhaseCost(NamedTuple):
  """The cost of one phase: its epochs, seconds to compile, seconds per step, and bytes on a device during a step."""

  phase: phases.Phase
  epochs: int
  compiling: float
  step: float
  memory: int


def _size(values: Any) -> int:
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(values))


def _layers(model: Any, variables: Any, image_shape: tuple[int, ...]) -> list[tuple[str, str, int]]:
  """(name, shape of the output for one image, parameters) of the network's own layers, in the order of their calls."""
  parameters = variables["params"]["network"]
  rows = []

  def trace(variables: Any, images: Array) -> Array:
    logits, found = model.apply(variables, images, capture_intermediates=True, mutable=["intermediates"])
    for name, layer in found["intermediates"]["network"].items():
      if (
        name != "__call__" and isinstance(layer, dict) and "__call__" in layer
      ):  # a layer has no __call__ if only another of its methods is used
        output = jax.tree.leaves(layer["__call__"])[0]
        rows.append((name, "x".join(map(str, output.shape[1:])), _size(parameters.get(name, {}))))
    return logits

  jax.eval_shape(trace, variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
  return rows


def _phases(experiment: experiment_lib.Experiment) -> list[_PhaseCost]:
  """Compiles and times each phase of training, in order."""
  config, mesh = experiment.config, experiment.mesh
  found = [phases.phase_at(config, epoch) for epoch in range(config.train.epochs)]
  place = data.make_device_put(experiment.training_source, mesh, config.data.placement)
  rows = np.arange(config.data.batch_size // jax.process_count())
  batch, costs = place(rows), []
  for phase in dict.fromkeys(found):
    make = (config, experiment.model, experiment.optimizer, experiment.total_steps, mesh, phase)
    step, state, start = step_lib.make_train_step(*make), experiment.initial_state(), time.perf_counter()
    compiled = cast(jax.stages.Wrapped, step.func).lower(*step.args, state, batch).compile()
    compiling = time.perf_counter() - start
    state, _ = jax.block_until_ready(compiled(*step.args, state, batch))
    start = time.perf_counter()
    for _ in range(_TIMED_STEPS):
      state, output = compiled(*step.args, state, batch)
    jax.block_until_ready((state, output))
    seconds = (time.perf_counter() - start) / _TIMED_STEPS
    used = compiled.memory_analysis()
    memory = used.argument_size_in_bytes + used.temp_size_in_bytes + used.output_size_in_bytes
    costs.append(_PhaseCost(phase, found.count(phase), compiling, seconds, memory - used.alias_size_in_bytes))
  return costs


def _seconds_of_a_gradient(config: ConfigDict, cost: _PhaseCost) -> float:
  """Approximate seconds for the gradient of one image: a step's time divided among the attacks and the update."""
  variants = len(config_lib.variant_names(config))
  every = sum(attack_entries.cost(entry).gradients for entry in config.train_attacks.values())
  attacks = every * variants / len(config.train_attacks)
  natural = phases.needs_natural(config, cost.phase)
  # The update also computes the gradient of the weights, so it counts 1.5 times.
  update = 1.5 * (variants + natural) * (1 + cost.phase.use_awp)
  return cost.step / (config.data.batch_size * (attacks + update))


def _evaluation(experiment: experiment_lib.Experiment, seconds_of_a_gradient: float) -> tuple[float, float]:
  """Approximate seconds (all validations, evaluation), as if all images were robust and took the whole attack."""
  config, dataset = experiment.config, experiment.dataset
  seconds = lambda cost: (cost.gradients + cost.queries / 2) * seconds_of_a_gradient
  validation = attack_entries.cost(config.validation_attack)
  validation = validation._replace(queries=validation.queries + 2)
  validating = config.train.epochs * len(dataset.validation.labels) * seconds(validation)
  count = len(dataset.evaluated(config.eval.split, config.eval.num_images).labels)
  whole = [attack_entries.cost(entry, dataset.num_classes) for entry in config.eval.suite.values()]
  return validating, count * sum(map(seconds, whole))


def describe(experiment: experiment_lib.Experiment, console: Console) -> None:
  """Prints the estimated cost of training and evaluating an experiment. Compiles, runs a few steps, writes nothing."""
  config, dataset, mesh = experiment.config, experiment.dataset, experiment.mesh
  say = lambda name, text: console.print(f"{name:<11} {text}", highlight=False, markup=False, soft_wrap=True)
  shape = "x".join(map(str, dataset.image_shape))
  splits = ", ".join(f"{len(dataset.split(name).labels):,} {name}" for name in ("train", "validation", "test"))
  say("run", f"{config.name}, seed {config.seed}; a dry run: nothing is written")
  say("data", f"{config.data.source}: {splits} images {shape}, {dataset.num_classes} classes")
  if dataset.extra is not None:
    others = data.num_extra(config.data.extra.fraction, config.data.batch_size)
    say("extra", f"{config.data.extra.source}: {len(dataset.extra.labels):,} images, {others} in every batch")
  say("devices", f"{mesh.size} {mesh.devices.flat[0].device_kind}, {jax.process_count()} process(es)")
  state = jax.eval_shape(experiment.initial_state)
  layers = Table("layer", "output", "parameters", box=None, pad_edge=False)
  layers.columns[2].justify = "right"
  for name, output, parameters in _layers(experiment.model, state.variables, dataset.image_shape):
    layers.add_row(name, output, f"{parameters:,}")
  total = _size(state.variables["params"])
  layers.add_row("all", str(dataset.num_classes), f"{total:,}")
  console.print(layers)
  computes = experiment_lib.compute_type(config.model.dtype, mesh)
  say("model", f"{config.model.name}, {total:,} parameters, computes in {computes}")
  _describe_steps(experiment, say)
  costs = _phases(experiment)
  for cost in costs:
    text = f"{seconds_text(cost.compiling)} to compile, {1000 * cost.step:,.0f} ms a step"
    say("phase", f"{cost.epochs} epochs {phases.phase_text(cost.phase)}: {text}, {decimal(cost.memory)} on each device")
  state_bytes = fsdp.bytes_per_device(experiment.abstract_state())
  most, limit = max(cost.memory for cost in costs), (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
  of = f" of {decimal(limit)}" if limit else ""
  say("memory", f"{decimal(state_bytes)} of state, {decimal(most)}{of} on each device in a step")
  training = sum(cost.epochs * experiment.steps_per_epoch * cost.step for cost in costs)
  validating, evaluation = _evaluation(experiment, _seconds_of_a_gradient(config, costs[-1]))
  compiling = sum(cost.compiling for cost in costs)
  say(
    "time",
    f"about {seconds_text(training)} of training, {seconds_text(validating)} of validation, at most "
    f"{seconds_text(evaluation)} of evaluation, at least {seconds_text(compiling)} of compilation",
  )


def _describe_steps(experiment: experiment_lib.Experiment, say: Any) -> None:
  """Prints the number of steps, the batch shape, and the attacks of training and evaluation."""
  config = experiment.config
  variants = len(config_lib.variant_names(config))
  say(
    "steps",
    f"{config.train.epochs} epochs of {experiment.steps_per_epoch} = {experiment.total_steps:,}; batches "
    f"[{config.data.batch_size}, {', '.join(map(str, experiment.dataset.image_shape))}], {variants} variant(s) a pair",
  )
  for name, entry in config.train_attacks.items():
    say("trains on", f"{name}: {attack_entries.threat(entry)}")
  cost = [attack_entries.cost(entry, experiment.dataset.num_classes) for entry in config.eval.suite.values()]
  gradients, queries = sum(c.gradients for c in cost), sum(c.queries for c in cost)
  say(
    "evaluated by",
    f"{', '.join(config.eval.suite)}: at most {gradients:,} gradients and {queries:,} queries per image",
  )
