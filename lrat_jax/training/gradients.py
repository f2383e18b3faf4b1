"""The gradient of a step: attack a device's shard of the batch, weight pairs, differentiate, average over devices."""

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

# If the loss uses no natural images, the natural accuracy is measured on one in this many images.
_NATURAL_SAMPLE = 8


class Shard(NamedTuple):
  """A device's part of the batch of a step, after `inputs.prepare`.

  Attributes:
    images: float [b, h, w, c] in [0, 1].
    labels: int [b], or float [b, classes], distributions.
    indices: int [b], which identify the images.
  """

  images: Array
  labels: Array
  indices: Array


class PerImage(NamedTuple):
  """Results for each image of the shard: [b], or [b, m] for each variant (`step.StepOutput`)."""

  natural_correct: Array
  vulnerabilities: Array
  surviving_fractions: Array
  natural_weights: Array
  adversarial_weights: Array
  global_weights: Array


class Joined(NamedTuple):
  """The gradient of the global batch; the same on every device, except for `per_image` and sharded gradients.

  Attributes:
    loss: float [], of the global batch.
    gradients: of that loss, a tree like the parameters; of sharded parameters, this device's part.
    batch_stats: batch norm's running averages after the batch.
    per_image: of this device's shard.
  """

  loss: Array
  gradients: Any
  batch_stats: Any
  per_image: PerImage


def logits_fn(model: nn.Module, variables: Variables, mode: str = "eval") -> Callable[[Array], Array]:
  """The function images -> logits that is attacked. `mode` "train" normalises with the batch's own statistics."""
  if mode == "eval":
    return lambda images: cast(Array, model.apply(variables, images, train=False))
  return lambda images: cast(Array, model.apply(variables, images, train=True, mutable=["batch_stats"])[0])


class _Pairs(NamedTuple):
  """Inputs of the loss on a device: the shard [b, ...], and what the attack returned for it [b, m, ...].

  `classes` int [b] are the true classes; `labels` are smoothed if label smoothing is on.
  """

  images: Array
  labels: Array
  classes: Array
  variants: Array
  surviving_fractions: Array


class _Told(NamedTuple):
  """Outputs of the loss besides its value; `natural_logits` is None if the loss does not use natural images."""

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

  With `train.microbatches` = k, attacks and gradients process the shard in k parts, one after another, and need the
  memory of one part. Loss and gradient are still means over the global batch, and global weights are over all its
  pairs. Batch norm's statistics are of one part, across devices, and its running averages are updated k times.

  It uses one mean over devices (two with AWP), plus those of batch norm and of global weights if they are on.

  Args:
    attack: shard -> its variants [b, m, h, w, c], and the fraction of iterates [b, m] that are classified correctly.
    num_classes: called only if labels are smoothed.
    specs: for each parameter, which part of its gradient each device gets (`fsdp.specs`).
  """
  images, labels, _ = shard
  classes = attacks.losses.true_classes(labels)
  variants, surviving_fractions = _by_parts(attack, config.train.microbatches, shard)
  if config.train.label_smoothing:  # in the loss only: the attack uses unsmoothed labels, as in Wang et al.'s code
    labels = data.smooth(labels, config.train.label_smoothing, num_classes())
  pairs = _Pairs(images, labels, classes, variants, surviving_fractions)
  # Every gradient below is of this device's shard, and is averaged over devices exactly once.
  of_device = functools.partial(_of_device, config, model, phase, variables["batch_stats"], pairs)
  params = variables["params"]
  if phase.use_awp:
    uphill = lax.pmean(of_device(params)[1], sharding.AXIS)
    params = awp.perturbed(params, uphill, config.awp.gamma)
  loss, gradients, batch_stats, told = of_device(params)
  if config.model.batch_norm == LOCAL:  # the running averages differ between devices, and are averaged too
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
  """Applies `function` to arrays [b, ...] in `count` parts, one after another."""
  return function(rows) if count == 1 else _merged(lax.map(function, _split(rows, count)))


def _of_device(
  config: ConfigDict, model: nn.Module, phase: Phase, batch_stats: Any, pairs: _Pairs, params: Any
) -> tuple[Array, Any, Any, _Told]:
  """(loss, its gradient, batch norm's running averages, other outputs) of this device's pairs, part by part."""
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
  loss, gradients = jax.tree.map(lambda x: x / count, sums)  # the parts have equal sizes
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
  """The mean loss of pairs, and other outputs of the forward; `across` are the global weights if already computed."""
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
  """The global weights [b] over all pairs, for gradients that are computed part by part; None if all weights are 1.

  They depend on the vulnerabilities, so the forward of the loss is computed twice; but not for GAIRAT, which does not
  use them.
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
  """The global weights [b] of this phase, normalised over the pairs of all devices."""
  kind = config.global_weights.kind if phase.use_global_weights else "none"
  return reweighting.global_weights(
    user_code.function(kind) if user_code.is_name(kind) else kind,
    vulnerabilities=vulnerabilities,
    surviving_fractions=surviving_fractions,
    axis_name=sharding.AXIS,
    **config.global_weights.get(kind, ConfigDict()).to_dict(),
  )


def _pairing(config: ConfigDict, adversarial_logits: Array, labels: Array) -> Array | float:
  """The loss of logit pairing over this device's images; 0 if it is off."""
  fields = config.logit_pairing
  if not fields.weight:
    return 0.0
  source = list(config.train_attacks).index(fields.attack)
  pairing = objectives.logit_pairing(adversarial_logits, labels, source, axis_name=sharding.AXIS)
  return fields.weight * jnp.mean(pairing)
