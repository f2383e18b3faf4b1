"""Estimates the cost of a run on TPUs that are not available, by compiling its programs for a described topology.

Nothing is run and no array is placed: the TPU compiler compiles the step of every phase, and the validation attack,
from shapes only. It reports the memory on a chip and the collectives of a program; the rest follows from the chip's
data sheet.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import NamedSharding
from jax.tree_util import Partial
from rich.console import Console
from rich.filesize import decimal

from lrat_jax import attacks, models
from lrat_jax.core import hlo, sharding, topologies
from lrat_jax.core.text import seconds_text
from lrat_jax.evaluation import batches
from lrat_jax.training import experiment as experiment_lib
from lrat_jax.training import phases
from lrat_jax.training import step as step_lib


class Rehearsed(NamedTuple):
  """What the compiler reports about one program, per device.

  Attributes:
    name: what the program does.
    images: the number of images in a batch, on all devices together.
    compiling: seconds of compilation.
    arguments, temporaries, code: bytes on a device. Results are written over arguments, or count as temporaries.
    flops: operations of matrix products and convolutions on a device; loops count for every iteration.
    outside, inside: numbers of collectives by kind, outside of loops and in their bodies.
  """

  name: str
  images: int
  compiling: float
  arguments: int
  temporaries: int
  code: int
  flops: float
  outside: dict[str, int]
  inside: dict[str, int]

  @property
  def memory(self) -> int:
    return self.arguments + self.temporaries + self.code


def flops(jaxpr: core.Jaxpr, platform: str) -> float:
  """Operations of the matrix products and convolutions in a jaxpr, two per multiply-add; scans count every iteration.

  A `while` without a known number of iterations counts once, and of a `cond` only the branch with the most operations
  counts. In a function that is mapped over devices, shapes are per device, and so is the count.
  """
  total = 0.0
  for equation in jaxpr.eqns:
    params, name = equation.params, equation.primitive.name
    operands: list[Any] = [atom.aval for atom in equation.invars]
    result: Any = equation.outvars[0].aval if equation.outvars else None
    if name == "dot_general":
      (contracted, _), _ = params["dimension_numbers"]
      total += 2.0 * result.size * math.prod(operands[0].shape[axis] for axis in contracted)
    elif name == "conv_general_dilated":
      kernel = operands[1].shape
      total += 2.0 * result.size * math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
    elif platforms := params.get("branches_platforms"):
      chosen = [i for i, of in enumerate(platforms) if of is None or platform in of]
      named = [i for i in chosen if platforms[i] is not None]
      total += flops(params["branches"][(named or chosen)[0]].jaxpr, platform)
    else:
      inner = [flops(found, platform) for found in core.jaxprs_in_params(params)]
      total += max(inner, default=0.0) if name == "cond" else sum(inner) * params.get("length", 1)
  return total


def _rehearse(name: str, images: int, program: Any, mesh: jax.sharding.Mesh, *args: Any) -> Rehearsed:
  start = time.perf_counter()
  traced = program.trace(*args)
  compiled = traced.lower().compile()
  compiling = time.perf_counter() - start
  used, text = compiled.memory_analysis(), compiled.as_text()
  everywhere, inside = hlo.collectives(text), hlo.collectives(hlo.inside_loops(text))
  outside = {kind: count - inside.get(kind, 0) for kind, count in everywhere.items() if count > inside.get(kind, 0)}
  results = used.output_size_in_bytes - used.alias_size_in_bytes
  return Rehearsed(
    name,
    images,
    compiling,
    used.argument_size_in_bytes,
    used.temp_size_in_bytes + results,
    used.generated_code_size_in_bytes,
    flops(traced.jaxpr.jaxpr, sharding.platform(mesh)),
    outside,
    inside,
  )


def _abstract(tree: Any, mesh: jax.sharding.Mesh, spec: jax.sharding.PartitionSpec) -> Any:
  """The shapes of a tree's arrays, with the sharding `spec` over a mesh."""
  place = NamedSharding(mesh, spec)
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


def _batch(experiment: experiment_lib.Experiment, size: int, **more: Any) -> dict[str, jax.ShapeDtypeStruct]:
  images = experiment.dataset.train.images
  batch = {
    "images": jax.ShapeDtypeStruct((size, *experiment.dataset.image_shape), images.dtype),
    "labels": jax.ShapeDtypeStruct((size,), jnp.int32),
    "indices": jax.ShapeDtypeStruct((size,), jnp.int32),
  }
  return _abstract(batch | more, experiment.mesh, sharding.BATCHED)


def programs(experiment: experiment_lib.Experiment) -> Iterator[Rehearsed]:
  """Compiles the step of every phase of the training, and the validation attack, one after the other."""
  config, mesh = experiment.config, experiment.mesh
  state = experiment.abstract_state()
  whole = functools.partial(_abstract, mesh=mesh, spec=sharding.REPLICATED)
  for phase in dict.fromkeys(phases.phase_at(config, epoch) for epoch in range(config.train.epochs)):
    make = (config, experiment.model, experiment.optimizer, experiment.total_steps, mesh, phase)
    keys = whole(jax.eval_shape(lambda: step_lib.root_keys(config)))
    batch = _batch(experiment, config.data.batch_size)
    name = f"step, {phases.phase_text(phase)}"
    yield _rehearse(name, config.data.batch_size, step_lib.train_step_program(*make), mesh, keys, state, batch)
  size = config.eval.batch_size
  attack = attacks.microbatch(attacks.from_config(config.validation_attack), experiment.microbatch_size)
  variables = experiment.abstract_state(evaluates=True).eval_variables
  logits_fn = Partial(models.applied(experiment.model), variables)
  batch = _batch(experiment, size, mask=jax.ShapeDtypeStruct((size,), jnp.bool_))
  key = whole(jax.eval_shape(lambda: jax.random.key(0)))
  program = batches.batch_program(attack, "linf", mesh)
  yield _rehearse("validation attack", size, program, mesh, (logits_fn,), key, batch)


def _kinds(found: dict[str, int]) -> str:
  return ", ".join(f"{count} {kind}" for kind, count in sorted(found.items())) or "no collective"


def describe(experiment: experiment_lib.Experiment, console: Console) -> None:
  """Prints the estimated cost of training on the experiment's described devices. Compiles, but runs nothing."""
  config, mesh = experiment.config, experiment.mesh
  say: Callable[[str, str], None] = lambda name, text: console.print(
    f"{name:<11} {text}", highlight=False, markup=False, soft_wrap=True
  )
  chip = topologies.chip(mesh)
  kind = mesh.devices.flat[0].device_kind
  say("run", f"{config.name}; a rehearsal: nothing runs, and nothing is written")
  say("devices", f"{mesh.size} {kind}" + (f" of {decimal(int(chip.memory))}" if chip else ""))
  computes = experiment_lib.compute_type(config.model.dtype, mesh)
  say("model", f"{config.model.name}, computes in {computes}; batches of {config.data.batch_size}")
  for found in programs(experiment):
    share = f", {found.memory / chip.memory:.0%} of its memory" if chip else ""
    say("program", f"{found.name}: {seconds_text(found.compiling)} to compile")
    say(
      "  a chip",
      f"{decimal(found.memory)}{share}: {decimal(found.arguments)} of arguments, {decimal(found.temporaries)} of "
      f"temporaries, {decimal(found.code)} of code",
    )
    say("  between", f"{_kinds(found.outside)}; in loops {_kinds(found.inside)}")
    bound = ""
    if chip and computes == "bfloat16":
      rate = found.images / (found.flops / chip.flops)
      bound = f"; at most {rate:,.0f} images/s, by the chips' peak in bfloat16"
    say("  work", f"{found.flops / 1e12:.3g} TFLOP a chip{bound}")
