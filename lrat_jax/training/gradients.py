"""From a device's shard of a batch to the gradients of all devices: attack, weigh, differentiate, join."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from ml_collections import ConfigDict

from lrat_jax import attacks, data, objectives, reweighting
from lrat_jax.config.default import LOCAL
from lrat_jax.core import fsdp, sharding, user_code
from lrat_jax.core.typing import Variables
from lrat_jax.training import awp
from lrat_jax.training.phases import Phase, needs_natural

# One image in so many shows the natural accuracy where the loss has no use for natural images.
_NATURAL_SAMPLE = 8


class Shard(NamedTuple):
  """What a device trains on in a step, as `inputs.prepare` makes it.

  Attributes:
    images: float [b, h, w, c] in [0, 1].
    labels: int [b], or float [b, classes], distributions.
    indices: int [b], the images' numbers.
  """

  images: Array
  labels: Array
  indices: Array


class PerImage(NamedTuple):
  """What the gradient tells of each image of the shard: [b], or [b, m] for each variant (`step.StepOutput`)."""

  natural_correct: Array
  vulnerabilities: Array
  surviving_fractions: Array
  natural_weights: Array
  adversarial_weights: Array
  global_weights: Array


class Joined(NamedTuple):
  """The same on every device, but for what is per image.

  Attributes:
    loss: float [], of the global batch.
    gradients: like the parameters, of that loss; of those that are split over devices, this one's part.
    batch_stats: batch norm's running averages after the batch.
    per_image: of this device's shard.
  """

  loss: Array
  gradients: Any
  batch_stats: Any
  per_image: PerImage


def logits_fn(model: nn.Module, variables: Variables, mode: str = "eval") -> Callable[[Array], Array]:
  """images -> logits, all that an attack knows of a model. `mode` "train" normalises by the batch's own statistics."""
  if mode == "eval":
    return lambda images: cast(Array, model.apply(variables, images, train=False))
  return lambda images: cast(Array, model.apply(variables, images, train=True, mutable=["batch_stats"])[0])


class _Pairs(NamedTuple):
  """What the loss sees of a device's instances: the shard [b, ...], and what the attack made of it [b, m, ...].

  `classes` int [b] are the true ones; `labels` are smoothed where labels are.
  """

  images: Array
  labels: Array
  classes: Array
  variants: Array
  surviving_fractions: Array


class _Told(NamedTuple):
  """What the loss tells besides its value; `natural_logits` is None where it has no use for natural images."""

  natural_logits: Array | None
  vulnerabilities: Array
  weights: tuple[Array, Array, Array]


def joined(
  config: ConfigDict,
  model: nn.Module,
  phase: Phase,
  variables: Variables,
  shard: Shard,
  attack: Callable[[Shard], tuple[Array, Array]],
  num_classes: Callable[[], int],
  specs: Any,
) -> Joined:
  """The gradient of a phase's loss on the global batch, from each device's shard of it.

  With `train.microbatches` k attacks and gradients go through the shard in k parts, one after another, and the memory
  is that of a part. Loss and gradient stay means over the global batch, and global weights too are of all its pairs.
  Batch norm's statistics are of each part, in its place on all devices, and its running averages move k times.

  It holds one mean over devices (two with AWP), and those of batch norm and of global weights where they are on.

  Args:
    attack: makes the variants [b, m, h, w, c] of a shard and says what share of iterates [b, m] the model survived.
    num_classes: asked for it only where labels are smoothed.
    specs: by parameter, which part of its gradient each device gets (`fsdp.specs`).
  """
  images, labels, _ = shard
  classes = attacks.losses.true_classes(labels)
  variants, surviving_fractions = _by_parts(attack, config.train.microbatches, shard)
  if config.train.label_smoothing:  # for the loss alone: the attack does not see it, as in Wang et al.'s code
    labels = data.smooth(labels, config.train.label_smoothing, num_classes())
  pairs = _Pairs(images, labels, classes, variants, surviving_fractions)
  # Every gradient below is this device's own; exactly one mean over devices joins them.
  of_device = functools.partial(_of_device, config, model, phase, variables["batch_stats"], pairs)
  params = variables["params"]
  if phase.use_awp:
    uphill = lax.pmean(of_device(params)[1], sharding.AXIS)
    params = awp.perturbed(params, uphill, config.awp.gamma)
  loss, gradients, batch_stats, told = of_device(params)
  if config.model.batch_norm == LOCAL:  # each device's averages moved its own way, and become their mean
    own, whole = (loss, gradients, batch_stats), sharding.REPLICATED
    loss, gradients, batch_stats = fsdp.mean(own, (whole, specs, whole))
  else:
    loss, gradients = fsdp.mean((loss, gradients), (sharding.REPLICATED, specs))
  natural_logits = told.natural_logits
  if natural_logits is None:
    sampled = -(-len(images) // _NATURAL_SAMPLE)
    natural_logits = logits_fn(model, variables)(images[:sampled])
  natural_correct = jnp.argmax(natural_logits, axis=-1) == classes[: len(natural_logits)]
  per_image = PerImage(natural_correct, told.vulnerabilities, surviving_fractions, *told.weights)
  return Joined(loss, gradients, batch_stats, per_image)


def _split(tree: Any, count: int) -> Any:
  """Arrays [b, ...] as [count, b / count, ...]."""
  return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), tree)


def _merged(tree: Any) -> Any:
  """Arrays [count, b / count, ...] as [b, ...]."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _by_parts(function: Callable[[Any], Any], count: int, rows: Any) -> Any:
  """What `function` makes of arrays [b, ...], from `count` parts of them, one after another."""
  return function(rows) if count == 1 else _merged(lax.map(function, _split(rows, count)))


def _of_device(
  config: ConfigDict, model: nn.Module, phase: Phase, batch_stats: Any, pairs: _Pairs, params: Any
) -> tuple[Array, Any, Any, _Told]:
  """(loss, its gradient, batch norm's running averages, what it tells) of this device's pairs, from their parts."""
  count = config.train.microbatches
  gradient = jax.value_and_grad(functools.partial(_loss, config, model, phase), has_aux=True)
  if count == 1:
    (loss, (batch_stats, told)), gradients = gradient(params, batch_stats, pairs)
    return loss, gradients, batch_stats, told
  across = _across_parts(config, model, phase, params, batch_stats, pairs)

  def add(carry: Any, part: Any) -> tuple[Any, _Told]:
    batch_stats, sums = carry
    (loss, (batch_stats, told)), gradients = gradient(params, batch_stats, *part)
    return (batch_stats, jax.tree.map(jnp.add, sums, (loss, gradients))), told

  start = batch_stats, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
  (batch_stats, sums), told = lax.scan(add, start, _split((pairs, across), count))
  loss, gradients = jax.tree.map(lambda x: x / count, sums)  # the parts are of one size
  return loss, gradients, batch_stats, _merged(told)


def _forward(
  config: ConfigDict, model: nn.Module, phase: Phase, params: Any, batch_stats: Any, pairs: _Pairs
) -> tuple[Array | None, Array, Array, Any]:
  """In train mode: (natural logits [b, classes] or None, adversarial logits, vulnerabilities, running averages)."""
  batch_size, num_variants = pairs.variants.shape[:2]
  inputs = pairs.variants.reshape(-1, *pairs.images.shape[1:])
  natural_in_loss = needs_natural(config, phase)
  if natural_in_loss:
    inputs = jnp.concatenate([pairs.images, inputs])
  variables = {"params": params, "batch_stats": batch_stats}
  logits, updated = model.apply(variables, inputs, train=True, mutable=["batch_stats"])
  natural = logits[:batch_size] if natural_in_loss else None
  adversarial = logits[-batch_size * num_variants :].reshape(batch_size, num_variants, -1)
  vulnerabilities = reweighting.vulnerability(adversarial, pairs.classes[:, None].repeat(num_variants, axis=1))
  return natural, adversarial, vulnerabilities, updated.get("batch_stats", {})


def _loss(
  config: ConfigDict,
  model: nn.Module,
  phase: Phase,
  params: Any,
  batch_stats: Any,
  pairs: _Pairs,
  across: Array | None = None,
) -> tuple[Array, tuple[Any, _Told]]:
  """The mean loss of pairs, with what else their forward gives; `across` are global weights that are known before."""
  natural, adversarial, vulnerabilities, batch_stats = _forward(config, model, phase, params, batch_stats, pairs)
  local = _local_weights(config, phase, vulnerabilities)
  if across is None:
    across = _global_weights(config, phase, vulnerabilities, pairs.surviving_fractions)
  pair_losses = objectives.pair_losses(config.objective, natural, adversarial, pairs.labels, *local, beta=config.beta)
  loss = jnp.mean(across * pair_losses) + _pairing(config, adversarial, pairs.classes)
  return loss, (batch_stats, _Told(natural, vulnerabilities, (*local, across)))


def _across_parts(
  config: ConfigDict, model: nn.Module, phase: Phase, params: Any, batch_stats: Any, pairs: _Pairs
) -> Array | None:
  """The global weights [b] of pairs whose gradients come part by part, of all of them at once; None where all are 1.

  They go by the vulnerabilities that the loss will find, whose forward is made twice for that; GAIRAT's do not.
  """
  kind = config.global_weights.kind if phase.use_global_weights else "none"
  if kind == "none":
    return None
  vulnerabilities = jnp.zeros_like(pairs.surviving_fractions)
  if kind != "gairat":
    found = lambda part: _forward(config, model, phase, params, batch_stats, part)[2]
    vulnerabilities = _by_parts(found, config.train.microbatches, pairs)
  return _global_weights(config, phase, vulnerabilities, pairs.surviving_fractions)


def _local_weights(config: ConfigDict, phase: Phase, vulnerabilities: Array) -> tuple[Array, Array]:
  """(natural [b], adversarial [b, m]) weights of this phase."""
  fields = config.local_weights
  options = {name: fields[name] for name in ("total", "minimum_natural", "slope", "bias")}
  if not phase.use_local_weights:
    return reweighting.uniform_local_weights(vulnerabilities, total=fields.total)
  if fields.kind == "max":
    return reweighting.max_local_weights(vulnerabilities, total=fields.total)
  if fields.kind == "softmax":
    return reweighting.softmax_local_weights(vulnerabilities, total=fields.total, slope=fields.slope)
  if user_code.is_name(fields.kind):
    return reweighting.user_local_weights(user_code.function(fields.kind), vulnerabilities, **options)
  return reweighting.local_weights(vulnerabilities, **options)


def _global_weights(config: ConfigDict, phase: Phase, vulnerabilities: Array, surviving_fractions: Array) -> Array:
  """The weights [b] of this phase across instances, over all devices' pairs."""
  kind = config.global_weights.kind if phase.use_global_weights else "none"
  return reweighting.global_weights(
    user_code.function(kind) if user_code.is_name(kind) else kind,
    vulnerabilities=vulnerabilities,
    surviving_fractions=surviving_fractions,
    axis_name=sharding.AXIS,
    **config.global_weights.get(kind, ConfigDict()).to_dict(),
  )


def _pairing(config: ConfigDict, adversarial_logits: Array, labels: Array) -> Array | float:
  """The loss of logit pairing over this device's images; 0 where it is off."""
  fields = config.logit_pairing
  if not fields.weight:
    return 0.0
  source = list(config.train_attacks).index(fields.attack)
  pairing = objectives.logit_pairing(adversarial_logits, labels, source, axis_name=sharding.AXIS)
  return fields.weight * jnp.mean(pairing)
