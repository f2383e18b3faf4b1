"""The adversarial variants of a batch: from all training attacks, or from one that is drawn for the batch (E-AT)."""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax
from ml_collections import ConfigDict

from lrat_jax import attacks, models
from lrat_jax.core import sharding


class Sampling(flax.struct.PyTreeNode):
  """Success rates of the training attacks so far, replicated; one entry for each of m attacks.

  Attributes:
    errors: float32 [m] in [0, 1], the mean fraction of a batch's variants that the model misclassified.
    batches: int32 [m], how many batches each attack was drawn for.
  """

  errors: Array
  batches: Array


def create(num_attacks: int) -> Sampling:
  """The record before the first batch."""
  return Sampling(jnp.zeros(num_attacks), jnp.zeros(num_attacks, jnp.int32))


def probabilities(sampling: Sampling) -> Array:
  """float32 [m]: an attack is drawn in proportion to its robust error (E-AT, arXiv:2105.12508, section 4.2).

  All are equal until each attack was drawn once, and as long as none has succeeded.
  """
  total = jnp.sum(sampling.errors)
  known = jnp.all(sampling.batches > 0) & (total > 0)
  even = jnp.full_like(sampling.errors, 1.0 / sampling.errors.size)
  return jnp.where(known, sampling.errors / jnp.where(known, total, 1.0), even)


def draw(key: Array, step: Array, sampling: Sampling) -> Array:
  """int32 []: the number of an attack for a step; the same on every device, because `key` and `sampling` are."""
  logits = jnp.log(probabilities(sampling))
  return jax.random.categorical(jax.random.fold_in(key, step), logits).astype(jnp.int32)


def updated(sampling: Sampling, drawn: Array, correct: Array) -> Sampling:
  """`sampling` after one more batch of the drawn attack; an attack's error is the mean over all its batches so far.

  The errors are counted over all devices in integers, so that the number of devices changes nothing. The original
  evaluates the network in the mode of the attack; here the forward of the loss is used, which is already computed.

  Args:
    correct: bool [b, 1], whether the variants of this device's images are classified correctly.
  """
  wrong, count = lax.psum((jnp.sum(~correct), jnp.int32(correct.size)), sharding.AXIS)
  batches = sampling.batches.at[drawn].add(1)
  mean = sampling.errors[drawn]
  return Sampling(sampling.errors.at[drawn].set(mean + (wrong / count - mean) / batches[drawn]), batches)


def attack(
  config: ConfigDict,
  platform: str,
  key: Array,
  step: Array,
  total_steps: int,
  drawn: Array | None,
  model_logits: Callable,
  images: Array,
  labels: Array,
  indices: Array,
) -> tuple[Array, Array]:
  """The variants [b, m, h, w, c] of every image, and the fraction of iterates [b, m] that are classified correctly.

  Labels are int [b], or float [b, classes]: distributions, which the cross-entropy of an attack uses. All other losses
  use the true class, and whether an attack succeeds is decided by the true class too.

  If an attack is drawn, m is 1 and only that attack runs. All attacks are in one program, because the draw depends on
  the state, which stays on the devices: with a program for each attack, the host would have to wait for every step.
  """
  ramp_steps = max(config.train.epsilon_ramp_fraction * total_steps, 1.0)
  ramp = jnp.minimum((step + 1) / ramp_steps, 1.0)
  keys = attacks.example_keys(jax.random.fold_in(key, step), indices)
  # With the batch's own statistics, an image's logits depend on all other images, so the batch is attacked as a whole.
  eval_mode = config.train.attack_batch_norm == "eval"
  microbatch_size = None
  if eval_mode:
    microbatch_size = models.microbatch_size(config.model.name, *images.shape[1:3], platform=platform)

  classes = attacks.losses.true_classes(labels)

  def run(j: int, entry: ConfigDict) -> tuple[Array, Array]:
    attack = attacks.scaled(attacks.from_config(entry), ramp)
    variant_keys = jax.vmap(lambda key: jax.random.fold_in(key, j))(keys)
    soft = {"label_distributions": labels} if labels.ndim == 2 and attacks.takes_distributions(attack) else {}
    result = attacks.microbatch(attack, microbatch_size)(variant_keys, model_logits, images, classes, **soft)
    return result.images, result.surviving_steps / attacks.most_surviving_steps(attack)

  runs = [functools.partial(run, j, entry) for j, entry in enumerate(config.train_attacks.values())]
  made = [run() for run in runs] if drawn is None else [lax.switch(drawn, runs)]
  variants, surviving = zip(*made, strict=True)
  return jnp.stack(variants, axis=1), jnp.stack(surviving, axis=1)
