"""One training step: attack, weigh, descend. Pure, and sharded over the devices' "data" axis."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array, lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lrat_jax import attacks, data, objectives, reweighting
from lrat_jax.config.default import LOCAL, SAMPLED
from lrat_jax.core import sharding, user_code
from lrat_jax.core.typing import Variables
from lrat_jax.training import awp
from lrat_jax.training import inputs as inputs_lib
from lrat_jax.training import variants as variants_lib

# Streams of random keys under the seed; numbers are never reused, so that old runs keep their noise.
_STREAMS = {"init": 0, "augment": 1, "attack": 2, "sampling": 3}

# One image in so many shows the natural accuracy where the loss has no use for natural images.
_NATURAL_SAMPLE = 8


class TrainState(flax.struct.PyTreeNode):
  """What a step changes, whole on every device.

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


class Phase(NamedTuple):
  """What is on; each phase is a compiled step of its own, so that plain training pays for none of them.

  Attributes:
    use_local_weights: local weights share out each pair; without, the variants share it evenly.
    use_global_weights: global weights differ between pairs; without, they are 1.
    use_awp: the gradient is taken where adversarial weight perturbation leads (`awp.perturbed`).
  """

  use_local_weights: bool
  use_global_weights: bool
  use_awp: bool = False


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


def stream_key(seed: int, stream: str) -> Array:
  """The root key of one named use of randomness under a seed."""
  return jax.random.fold_in(jax.random.key(seed), _STREAMS[stream])


def phase_at(config: ConfigDict, epoch: int) -> Phase:
  """What is on in an epoch (0-based): each begins after its share of the epochs."""
  done = epoch / config.train.epochs
  return Phase(
    use_local_weights=config.local_weights.kind != "none" and done >= config.local_weights.begin_fraction,
    use_global_weights=config.global_weights.kind != "none" and done >= config.global_weights.begin_fraction,
    use_awp=config.awp.gamma > 0 and done >= config.awp.begin_fraction,
  )


def phase_text(phase: Phase) -> str:
  """What is on in a phase, in words."""
  on = [name.removeprefix("use_").replace("_", " ") for name, active in phase._asdict().items() if active]
  return ", ".join(on) or "plain"


def needs_natural(config: ConfigDict, phase: Phase) -> bool:
  """Whether the loss needs the model's prediction on the natural images."""
  weighed = phase.use_local_weights and reweighting.weighs_natural(config.local_weights.kind)
  return weighed or objectives.compares_with_natural(config.objective)


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


def logits_fn(model: nn.Module, variables: Variables, mode: str = "eval") -> Callable[[Array], Array]:
  """images -> logits, all that an attack knows of a model. `mode` "train" normalises by the batch's own statistics."""
  if mode == "eval":
    return lambda images: cast(Array, model.apply(variables, images, train=False))
  return lambda images: cast(Array, model.apply(variables, images, train=True, mutable=["batch_stats"])[0])


def _weights(config: ConfigDict, phase: Phase, vulnerabilities: Array, surviving_fractions: Array):
  """(natural [b], adversarial [b, m], global [b]) weights of this phase."""
  fields = config.local_weights
  options = {name: fields[name] for name in ("total", "minimum_natural", "slope", "bias")}
  if not phase.use_local_weights:
    local = reweighting.uniform_local_weights(vulnerabilities, total=fields.total)
  elif fields.kind == "max":
    local = reweighting.max_local_weights(vulnerabilities, total=fields.total)
  elif fields.kind == "softmax":
    local = reweighting.softmax_local_weights(vulnerabilities, total=fields.total, slope=fields.slope)
  elif user_code.is_name(fields.kind):
    local = reweighting.user_local_weights(user_code.function(fields.kind), vulnerabilities, **options)
  else:
    local = reweighting.local_weights(vulnerabilities, **options)
  kind = config.global_weights.kind if phase.use_global_weights else "none"
  across = reweighting.global_weights(
    user_code.function(kind) if user_code.is_name(kind) else kind,
    vulnerabilities=vulnerabilities,
    surviving_fractions=surviving_fractions,
    axis_name=sharding.AXIS,
    **config.global_weights.get(kind, ConfigDict()).to_dict(),
  )
  return *local, across


def _pairing(config: ConfigDict, adversarial_logits: Array, labels: Array) -> Array | float:
  """The loss of logit pairing over this device's images; 0 where it is off."""
  fields = config.logit_pairing
  if not fields.weight:
    return 0.0
  source = list(config.train_attacks).index(fields.attack)
  pairing = objectives.logit_pairing(adversarial_logits, labels, source, axis_name=sharding.AXIS)
  return fields.weight * jnp.mean(pairing)


def _step(
  config: ConfigDict,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  total_steps: int,
  phase: Phase,
  platform: str,
  root_keys: dict[str, Array],
  state: TrainState,
  batch: data.loader.Batch,
) -> tuple[TrainState, StepOutput]:
  """What one device does with its shard of the batch."""
  indices = batch["indices"]
  # Every gradient below is this device's own; exactly one mean over devices joins them.
  variables = state.variables
  keys = attacks.example_keys(jax.random.fold_in(root_keys["augment"], state.step), indices)
  model_logits = logits_fn(model, variables, config.train.attack_batch_norm)
  num_classes = lambda: jax.eval_shape(model_logits, data.to_float(batch["images"])).shape[-1]
  images, labels = inputs_lib.prepare(config, keys, batch, num_classes)
  classes = attacks.losses.true_classes(labels)
  drawn = None if state.sampling is None else variants_lib.draw(root_keys["sampling"], state.step, state.sampling)
  variants, surviving_fractions = variants_lib.attack(
    config, platform, root_keys["attack"], state.step, total_steps, drawn, model_logits, images, labels, indices
  )
  if config.train.label_smoothing:  # for the loss alone: the attack does not see it, as in Wang et al.'s code
    labels = data.smooth(labels, config.train.label_smoothing, num_classes())
  batch_size, num_variants = variants.shape[:2]
  adversarial_images = variants.reshape(-1, *images.shape[1:])
  natural_in_loss = needs_natural(config, phase)

  def loss_fn(params):
    inputs = jnp.concatenate([images, adversarial_images]) if natural_in_loss else adversarial_images
    logits, updated = model.apply({**variables, "params": params}, inputs, train=True, mutable=["batch_stats"])
    natural = logits[:batch_size] if natural_in_loss else None
    adversarial = logits[-batch_size * num_variants :].reshape(batch_size, num_variants, -1)
    vulnerabilities = reweighting.vulnerability(adversarial, classes[:, None].repeat(num_variants, axis=1))
    weights = _weights(config, phase, vulnerabilities, surviving_fractions)
    pair_losses = objectives.pair_losses(config.objective, natural, adversarial, labels, *weights[:2], beta=config.beta)
    loss = jnp.mean(weights[2] * pair_losses) + _pairing(config, adversarial, classes)
    return loss, (natural, vulnerabilities, weights, updated.get("batch_stats", {}))

  at = _gradient_point(config, phase, state, variables["params"], loss_fn)
  (loss, aux), gradients = jax.value_and_grad(loss_fn, has_aux=True)(at)
  natural_logits, vulnerabilities, weights, batch_stats = aux
  if config.model.batch_norm == LOCAL:  # each device's averages moved its own way, and become their mean
    loss, gradients, batch_stats = lax.pmean((loss, gradients, batch_stats), sharding.AXIS)
  else:
    loss, gradients = lax.pmean((loss, gradients), sharding.AXIS)
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.variables["params"])
  new_variables = {"params": optax.apply_updates(state.variables["params"], updates), "batch_stats": batch_stats}
  if natural_logits is None:
    sampled = -(-batch_size // _NATURAL_SAMPLE)
    natural_logits = logits_fn(model, variables)(images[:sampled])
  adversarial_correct = vulnerabilities <= 0
  output = StepOutput(
    loss=loss,
    gradient_norm=optax.tree.norm(gradients),
    parameter_norm=optax.tree.norm(new_variables["params"]),
    drawn=jnp.zeros((), jnp.int32) if drawn is None else drawn,
    indices=indices,
    labels=classes,
    natural_correct=jnp.argmax(natural_logits, axis=-1) == classes[: len(natural_logits)],
    adversarial_correct=adversarial_correct,
    vulnerabilities=vulnerabilities,
    surviving_fractions=surviving_fractions,
    natural_weights=weights[0],
    adversarial_weights=weights[1],
    global_weights=weights[2],
  )
  ema = _moving_average(config, state, new_variables)
  sampling = None if drawn is None else variants_lib.updated(state.sampling, drawn, adversarial_correct)
  return TrainState(state.step + 1, new_variables, opt_state, ema, sampling), output


def _gradient_point(config: ConfigDict, phase: Phase, state: TrainState, params: Any, loss_fn: Callable) -> Any:
  """The parameters at which the step takes its gradient: `params`, or where AWP moves them."""
  if not phase.use_awp:
    return params
  uphill = lax.pmean(jax.grad(loss_fn, has_aux=True)(params)[0], sharding.AXIS)
  return awp.perturbed(state.variables["params"], uphill, config.awp.gamma)


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
) -> jax.stages.Wrapped:
  """The jitted step of one phase: (root keys, state, batch) -> (state, StepOutput).

  The seed enters by `root_keys`, so that one compiled program serves every seed. The state is whole on every device and
  its buffers are given up to the new one; the batch {"images" [b, h, w, c], "labels" [b] or [b, classes], "indices"
  [b]} and the per-image outputs are split over the mesh. A step holds one mean over devices for loss and gradient (two
  with AWP), those of batch norm and of global weights where they are on, and with MixUp or CutMix one image sent from
  each device to the next. The attack loop holds none, but with `train.attack_batch_norm` "train" those of batch norm at
  every step of it. With `model.batch_norm` "local" batch norm has none of its own: its running averages go into the one
  of the gradient.
  """
  per_image: dict[str, Any] = {name: sharding.BATCHED for name in StepOutput._fields}
  of_the_batch = ("loss", "gradient_norm", "parameter_norm", "drawn")
  sharded = sharding.shard_map(
    functools.partial(_step, config, model, optimizer, total_steps, phase, sharding.platform(mesh)),
    mesh,
    in_specs=(sharding.REPLICATED, sharding.REPLICATED, sharding.BATCHED),
    out_specs=(
      sharding.REPLICATED,
      StepOutput(**per_image | dict.fromkeys(of_the_batch, sharding.REPLICATED)),
    ),
  )
  return cast(jax.stages.Wrapped, sharding.jit(sharded, mesh, donate_argnums=1))


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
) -> functools.partial[tuple[TrainState, StepOutput]]:
  """The compiled step of one phase under the config's seed: (state, batch) -> (state, StepOutput)."""
  program = train_step_program(config, model, optimizer, total_steps, mesh, phase)
  return functools.partial(program, sharding.replicate(mesh, root_keys(config)))
