"""One training step: prepare, differentiate (`gradients`), descend. Pure, and sharded over devices."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array, lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lrat_jax import attacks, data
from lrat_jax.config.default import SAMPLED
from lrat_jax.core import fsdp, sharding
from lrat_jax.core.typing import Variables
from lrat_jax.training import gradients
from lrat_jax.training import inputs as inputs_lib
from lrat_jax.training import variants as variants_lib
from lrat_jax.training.phases import Phase

# Streams of random keys under the seed; numbers are never reused, so that old runs keep their noise.
_STREAMS = {"init": 0, "augment": 1, "attack": 2, "sampling": 3}


class TrainState(flax.struct.PyTreeNode):
  """What a step changes; over devices it lies as `state_specs` says, by default whole on every one.

  Attributes:
    step: int32 [], steps done.
    variables: the model's {"params", "batch_stats"}; the second may be empty.
    opt_state: optax's.
    ema: an exponential moving average of `variables`, or None where it is off.
    sampling: how the training attacks fared, where one is drawn for each batch, else None.
  """

  step: Array
  variables: Variables
  opt_state: optax.OptState
  ema: Variables | None
  sampling: variants_lib.Sampling | None = None

  @property
  def eval_variables(self) -> Variables:
    """The variables that are validated and evaluated."""
    return self.variables if self.ema is None else self.ema


class StepOutput(NamedTuple):
  """What a step tells. The scalars are of the global batch; the rest is per image, [batch] or [batch, m].

  `drawn` is the number of the attack that made the variants, where one was drawn for the batch, so m = 1; else it is 0.

  `natural_correct` comes free where natural images are in the loss (its forward, in train mode). Where they are not, it
  is a sample, the first eighth of each device's images in eval mode: a forward of all would be a tenth of a PGD-5 step.
  `labels` are the true classes; of an image that was mixed from two, that of the one with the larger share.
  `surviving_fractions` is kappa / K. `gradient_norm` is that before clipping.
  """

  loss: Array
  gradient_norm: Array
  parameter_norm: Array
  drawn: Array
  indices: Array
  labels: Array
  natural_correct: Array
  adversarial_correct: Array
  vulnerabilities: Array
  surviving_fractions: Array
  natural_weights: Array
  adversarial_weights: Array
  global_weights: Array


# How what a step tells lies over the devices.
_OF_THE_BATCH = ("loss", "gradient_norm", "parameter_norm", "drawn")
_PLACES: dict[str, Any] = dict.fromkeys(StepOutput._fields, sharding.BATCHED)
_OUTPUT_SPECS = StepOutput(**_PLACES | dict.fromkeys(_OF_THE_BATCH, sharding.REPLICATED))


def stream_key(seed: int, stream: str) -> Array:
  """The root key of one named use of randomness under a seed."""
  return jax.random.fold_in(jax.random.key(seed), _STREAMS[stream])


def create_state(
  config: ConfigDict, model: nn.Module, optimizer: optax.GradientTransformation, image_shape: Sequence[int]
) -> TrainState:
  """The state before the first step, from the seed alone."""
  variables = jax.jit(model.init)(stream_key(config.seed, "init"), jnp.zeros((1, *image_shape)))
  variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    variables=variables,
    opt_state=optimizer.init(variables["params"]),
    ema=jax.tree.map(jnp.copy, variables) if config.train.ema_decay else None,
    sampling=variants_lib.create(len(config.train_attacks)) if config.train.variants == SAMPLED else None,
  )


def state_specs(config: ConfigDict, mesh: Mesh, state: Any) -> Any:
  """How the arrays of a state lie over a mesh, large ones in parts over its axis "model" (`fsdp.specs`)."""
  return fsdp.specs(state, mesh, config.mesh.shard_above)


def leaf_names(tree: Any) -> dict[str, Any]:
  """A tree's leaves by their names, "params/network/Conv_0/kernel"."""
  leaves = jax.tree.leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def begin_with(state: TrainState, arrays: Mapping[str, Any]) -> TrainState:
  """The state before the first step with other variables where `arrays` has them by their names; all other are kept."""
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  taken = lambda path, leaf: jnp.asarray(arrays[name(path)], leaf.dtype) if name(path) in arrays else leaf
  variables = jax.tree.map_with_path(taken, state.variables)
  return state.replace(variables=variables, ema=None if state.ema is None else jax.tree.map(jnp.copy, variables))


class _OnDevice(NamedTuple):
  """What a device makes of its shard of the batch.

  Attributes:
    joined: the gradient of the global batch.
    classes: int [b], the true classes.
    drawn: int32 [], the number of the attack that was drawn, or None.
    sampling: the state's after the batch, or None.
  """

  joined: gradients.Joined
  classes: Array
  drawn: Array | None
  sampling: variants_lib.Sampling | None


def _on_device(
  config: ConfigDict,
  model: nn.Module,
  total_steps: int,
  phase: Phase,
  platform: str,
  specs: Variables,
  root_keys: dict[str, Array],
  step: Array,
  variables: Variables,
  sampling: variants_lib.Sampling | None,
  batch: data.loader.Batch,
) -> _OnDevice:
  """The part of a step that is mapped over devices: from a shard of the batch to the gradient of all of it."""
  variables, indices = fsdp.all_gather(variables, specs), batch["indices"]
  keys = attacks.example_keys(jax.random.fold_in(root_keys["augment"], step), indices)
  model_logits = gradients.logits_fn(model, variables, config.train.attack_batch_norm)
  num_classes = lambda: jax.eval_shape(model_logits, data.to_float(batch["images"])).shape[-1]
  shard = gradients.Shard(*inputs_lib.prepare(config, keys, batch, num_classes), indices)
  drawn = None if sampling is None else variants_lib.draw(root_keys["sampling"], step, sampling)
  attack = functools.partial(
    variants_lib.attack, config, platform, root_keys["attack"], step, total_steps, drawn, model_logits
  )
  joined = gradients.joined(
    config,
    model,
    phase,
    variables,
    shard,
    attack=lambda shard: attack(*shard),
    num_classes=num_classes,
    specs=specs["params"],
  )
  if sampling is not None:
    sampling = variants_lib.updated(sampling, drawn, joined.per_image.vulnerabilities <= 0)
  return _OnDevice(joined, attacks.losses.true_classes(shard.labels), drawn, sampling)


def _step(
  config: ConfigDict,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  on_device: Callable[..., _OnDevice],
  root_keys: dict[str, Array],
  state: TrainState,
  batch: data.loader.Batch,
) -> tuple[TrainState, StepOutput]:
  """A step on all devices: the gradient, which is mapped over them, and what the optimiser makes of it, which is not.

  So an optimiser may look at all parameters, as clipping does, wherever their parts are.
  """
  specs, params = state_specs(config, mesh, state), state.variables["params"]
  whole: Any = sharding.REPLICATED
  split: Any = sharding.BATCHED
  joined_specs = gradients.Joined(whole, specs.variables["params"], whole, per_image=split)
  mapped = sharding.shard_map(
    functools.partial(on_device, specs.variables),
    mesh,
    in_specs=(whole, whole, specs.variables, whole, split),
    out_specs=_OnDevice(joined_specs, split, whole, whole),
  )
  joined, classes, drawn, sampling = mapped(root_keys, state.step, state.variables, state.sampling, batch)
  updates, opt_state = optimizer.update(joined.gradients, state.opt_state, params)
  variables = {"params": optax.apply_updates(params, updates), "batch_stats": joined.batch_stats}
  output = StepOutput(
    loss=joined.loss,
    gradient_norm=optax.tree.norm(joined.gradients),
    parameter_norm=optax.tree.norm(variables["params"]),
    drawn=jnp.zeros((), jnp.int32) if drawn is None else drawn,
    indices=batch["indices"],
    labels=classes,
    adversarial_correct=joined.per_image.vulnerabilities <= 0,
    **joined.per_image._asdict(),
  )
  state = TrainState(state.step + 1, variables, opt_state, _moving_average(config, state, variables), sampling)
  return fsdp.constrain(state, mesh, specs), fsdp.constrain(output, mesh, _OUTPUT_SPECS)


def _steps(
  mesh: Mesh,
  step: Callable[..., tuple[TrainState, StepOutput]],
  root_keys: dict[str, Array],
  state: TrainState,
  *batches: data.loader.Batch,
) -> tuple[TrainState, StepOutput]:
  """A step for each of several batches, in a loop, and their outputs as one."""
  stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *batches)
  state, outputs = lax.scan(functools.partial(step, root_keys), state, stacked)
  # Images lead, as in the output of one step: what is split over the devices is so by the first axis.
  outputs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1) if x.ndim > 1 else x, outputs)
  return state, fsdp.constrain(outputs, mesh, _OUTPUT_SPECS)


def outputs_by_step(output: StepOutput) -> list[StepOutput]:
  """What a call of one step or more tells, step by step; of arrays on the host."""
  if np.ndim(output.loss) == 0:
    return [output]
  of_step = lambda number: jax.tree.map(lambda x: x[:, number] if x.ndim > 1 else x[number], output)
  return [of_step(number) for number in range(len(output.loss))]


def _moving_average(config: ConfigDict, state: TrainState, variables: Variables) -> Variables | None:
  """The average with a decay that grows to its configured value, so that the first steps do not hold it back."""
  if state.ema is None:
    return None
  decay = jnp.minimum(config.train.ema_decay, (1.0 + state.step) / (10.0 + state.step))
  return optax.incremental_update(variables, state.ema, 1.0 - decay)


def train_step_program(
  config: ConfigDict,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  total_steps: int,
  mesh: Mesh,
  phase: Phase,
  num_steps: int = 1,
) -> jax.stages.Wrapped:
  """The jitted step of one phase: (root keys, state, batch) -> (state, StepOutput).

  With more `num_steps` it takes so many batches, (root keys, state, *batches), and goes through them in a loop on the
  devices. Its output has an axis of steps: [num_steps], and after the images [batch, num_steps, ...].

  The seed enters by `root_keys`, so that one compiled program serves every seed. The state lies as `state_specs` says
  and its buffers are given up to the new one; the batch {"images" [b, h, w, c], "labels" [b] or [b, classes], "indices"
  [b]} and the per-image outputs are split over the mesh. A step holds one mean over devices for loss and gradient (two
  with AWP), those of batch norm and of global weights where they are on, and with MixUp or CutMix one image sent from
  each device to the next. The attack loop holds none, but with `train.attack_batch_norm` "train" those of batch norm at
  every step of it. With `model.batch_norm` "local" batch norm has none of its own: its running averages go into the one
  of the gradient. Where parameters are split, they are gathered at the step's begin, and their gradients scattered
  instead of being joined everywhere.
  """
  on_device = functools.partial(_on_device, config, model, total_steps, phase, sharding.platform(mesh))
  step = functools.partial(_step, config, optimizer, mesh, on_device)
  program = step if num_steps == 1 else functools.partial(_steps, mesh, step)
  return cast(jax.stages.Wrapped, sharding.jit(program, mesh, donate_argnums=1))


def root_keys(config: ConfigDict) -> dict[str, Array]:
  """The keys of the streams of randomness that a step uses."""
  streams = ("augment", "attack", *(("sampling",) if config.train.variants == SAMPLED else ()))
  return {stream: stream_key(config.seed, stream) for stream in streams}


def make_train_step(
  config: ConfigDict,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  total_steps: int,
  mesh: Mesh,
  phase: Phase,
  num_steps: int = 1,
) -> functools.partial[tuple[TrainState, StepOutput]]:
  """The compiled step of one phase under the config's seed: (state, *batches) -> (state, StepOutput)."""
  program = train_step_program(config, model, optimizer, total_steps, mesh, phase, num_steps)
  return functools.partial(program, sharding.replicate(mesh, root_keys(config)))
