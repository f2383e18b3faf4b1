"""One training step: prepare the batch, differentiate (`gradients`), update. Pure, and sharded over devices."""

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

# Streams of random keys under the seed. A number is never reused, so that old runs keep their random numbers.
_STREAMS = {"init": 0, "augment": 1, "attack": 2, "sampling": 3}


class TrainState(flax.struct.PyTreeNode):
  """What a step updates. `state_specs` says how it is laid out over devices: by default, it is replicated.

  Attributes:
    step: int32 [], number of steps done.
    variables: the model's {"params", "batch_stats"}; the second may be empty.
    opt_state: optax's.
    ema: an exponential moving average of `variables`, or None if it is off.
    sampling: success rates of the training attacks if one is drawn for each batch (`train.variants`), else None.
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
  """What a step reports. The scalars are of the global batch; the rest is per image, [batch] or [batch, m].

  If one attack is drawn for each batch, m = 1 and `drawn` is that attack's number; else `drawn` is 0.

  `natural_correct` costs nothing if natural images are in the loss: it is from that forward, in train mode. If they are
  not, it is of a sample, the first eighth of each device's images, in eval mode: a forward of all images would take a
  tenth of a PGD-5 step. `labels` are the true classes; for a mixed image, the one with the larger share.
  `surviving_fractions` is kappa / K. `gradient_norm` is the norm before clipping.
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


# How a step's output is laid out over the devices.
_OF_THE_BATCH = ("loss", "gradient_norm", "parameter_norm", "drawn")
_PLACES: dict[str, Any] = dict.fromkeys(StepOutput._fields, sharding.BATCHED)
_OUTPUT_SPECS = StepOutput(**_PLACES | dict.fromkeys(_OF_THE_BATCH, sharding.REPLICATED))


def stream_key(seed: int, stream: str) -> Array:
  """The root key of one stream of random numbers under a seed."""
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
  """How the arrays of a state are laid out over a mesh: large ones are sharded over its axis "model" (`fsdp.specs`)."""
  return fsdp.specs(state, mesh, config.mesh.shard_above)


def leaf_names(tree: Any) -> dict[str, Any]:
  """A tree's leaves by name, such as "params/network/Conv_0/kernel"."""
  leaves = jax.tree.leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def begin_with(state: TrainState, arrays: Mapping[str, Any]) -> TrainState:
  """An initial state in which the variables that `arrays` has, by name, replace those of `state`."""
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  taken = lambda path, leaf: jnp.asarray(arrays[name(path)], leaf.dtype) if name(path) in arrays else leaf
  variables = jax.tree.map_with_path(taken, state.variables)
  return state.replace(variables=variables, ema=None if state.ema is None else jax.tree.map(jnp.copy, variables))


class _OnDevice(NamedTuple):
  """What a device computes from its shard of the batch.

  Attributes:
    joined: the gradient of the global batch.
    classes: int [b], the true classes.
    drawn: int32 [], the number of the attack that was drawn, or None.
    sampling: the updated `TrainState.sampling`, or None.
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
  """The part of a step that is mapped over devices: from a shard of the batch to the global batch's gradient."""
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
  """A step on all devices: the gradient is mapped over them, the optimiser's update is not.

  So an optimiser may use all parameters, as clipping does, also if they are sharded.
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
  """One step for each of several batches, in a loop; their outputs are stacked."""
  stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *batches)
  state, outputs = lax.scan(functools.partial(step, root_keys), state, stacked)
  # The axis of images comes first, as in the output of one step, because outputs are sharded over their first axis.
  outputs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1) if x.ndim > 1 else x, outputs)
  return state, fsdp.constrain(outputs, mesh, _OUTPUT_SPECS)


def outputs_by_step(output: StepOutput) -> list[StepOutput]:
  """The output of each step of a call that ran one or more; takes arrays on the host."""
  if np.ndim(output.loss) == 0:
    return [output]
  of_step = lambda number: jax.tree.map(lambda x: x[:, number] if x.ndim > 1 else x[number], output)
  return [of_step(number) for number in range(len(output.loss))]


def _moving_average(config: ConfigDict, state: TrainState, variables: Variables) -> Variables | None:
  """The moving average. Its decay grows to the configured value, so that the initial weights are soon forgotten."""
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

  With `num_steps` above 1 it takes that many batches, (root keys, state, *batches), and loops over them on the devices.
  Its output then has an axis of steps: [num_steps], or [batch, num_steps, ...] for what is per image.

  The seed is an input, by `root_keys`, so one program serves every seed. The state is laid out as `state_specs`
  says, and its buffers are donated. The batch {"images" [b, h, w, c], "labels" [b] or [b, classes], "indices" [b]} and
  the per-image outputs are sharded over the mesh.

  Collectives of a step: one mean over devices for loss and gradient (two with AWP); those of batch norm, and of global
  weights if they are on; with MixUp or CutMix, one image sent from each device to the next. The attack loop has none,
  unless `train.attack_batch_norm` is "train": then each of its steps has those of batch norm. With `model.batch_norm`
  "local" batch norm has none of its own, because its running averages join the mean of the gradient. Sharded parameters
  are gathered at the start of a step, and their gradients are reduced and scattered.
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
