"""From a device's shard of a batch to the gradients of all devices: attack, weigh, differentiate, join."""

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

  It holds one mean over devices (two with AWP), and those of batch norm and of global weights where they are on.

  Args:
    attack: makes the variants [b, m, h, w, c] of a shard and says what share of iterates [b, m] the model survived.
    num_classes: asked for it only where labels are smoothed.
    specs: by parameter, which part of its gradient each device gets (`fsdp.specs`).
  """
  # Every gradient below is this device's own; exactly one mean over devices joins them.
  images, labels, _ = shard
  classes = attacks.losses.true_classes(labels)
  variants, surviving_fractions = attack(shard)
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

  at = _gradient_point(config, phase, variables["params"], loss_fn)
  (loss, aux), gradients = jax.value_and_grad(loss_fn, has_aux=True)(at)
  natural_logits, vulnerabilities, weights, batch_stats = aux
  if config.model.batch_norm == LOCAL:  # each device's averages moved its own way, and become their mean
    own, whole = (loss, gradients, batch_stats), sharding.REPLICATED
    loss, gradients, batch_stats = fsdp.mean(own, (whole, specs, whole))
  else:
    loss, gradients = fsdp.mean((loss, gradients), (sharding.REPLICATED, specs))
  if natural_logits is None:
    sampled = -(-batch_size // _NATURAL_SAMPLE)
    natural_logits = logits_fn(model, variables)(images[:sampled])
  natural_correct = jnp.argmax(natural_logits, axis=-1) == classes[: len(natural_logits)]
  per_image = PerImage(natural_correct, vulnerabilities, surviving_fractions, *weights)
  return Joined(loss, gradients, batch_stats, per_image)


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


def _gradient_point(config: ConfigDict, phase: Phase, params: Any, loss_fn: Callable) -> Any:
  """The parameters at which the step takes its gradient: `params`, or where AWP moves them."""
  if not phase.use_awp:
    return params
  uphill = lax.pmean(jax.grad(loss_fn, has_aux=True)(params)[0], sharding.AXIS)
  return awp.perturbed(params, uphill, config.awp.gamma)
