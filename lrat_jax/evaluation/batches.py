"""One attack on the batches of a split, each image once, sharded over devices: the batch program, and validation."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh
from jax.tree_util import Partial

from lrat_jax import attacks, data, models, reweighting
from lrat_jax.attacks import losses, threat_model
from lrat_jax.core import sharding
from lrat_jax.core.typing import Variables

Evaluator = Callable[[Variables, data.Split, Array], dict[str, np.ndarray]]
# The evaluated model, followed by the attacked model if that is a different one.
Models = tuple[Partial, ...]
EvaluateBatch = Callable[[Models, Array, dict[str, Array]], dict[str, Array]]
Arrays = dict[str, np.ndarray]

# In place of the predicted class if logits are NaN or infinite.
NO_PREDICTION = -1


def batch_program(attack: attacks.Attack | None, norm: str, mesh: Mesh) -> EvaluateBatch:
  """(models, key, batch) -> logits, predictions, vulnerabilities, distances and images [batch, ...] under an attack.

  With `attack` None, the images under "found" in the batch are evaluated, or the clean images if there are none. If an
  attack returns an image that is not finite, the clean image is evaluated, and "lost" [batch] is True for it. If logits
  are not finite, the prediction is `NO_PREDICTION`. "deceived" [batch]: of two models, only the attacked one is wrong.
  """

  def evaluate_shard(asked: Models, key: Array, batch: dict[str, Array]) -> dict[str, Array]:
    logits_fn, attacked = asked[0], asked[-1]
    originals, labels = data.to_float(batch["images"]), batch["labels"]
    found = data.to_float(batch.get("found", batch["images"]))
    if attack is not None:
      found = attack(attacks.example_keys(key, batch["indices"]), attacked, originals, labels).images
    lost = ~threat_model.finite(found)
    images = jnp.where(lost[:, None, None, None], originals, found)
    logits = logits_fn(images)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    answered = losses.is_answer(logits)
    deceived = jnp.zeros_like(lost)
    if attack is not None and len(asked) > 1:
      deceived = losses.is_correct(logits, labels) & ~losses.is_correct(attacked(images), labels)
    return {
      "logits": logits,
      "predictions": jnp.where(answered, jnp.argmax(logits, axis=-1), NO_PREDICTION).astype(jnp.int32),
      "vulnerabilities": jnp.where(answered, reweighting.vulnerability(logits, labels), 1.0),
      "distances": threat_model.length_of(norm)(images - originals),
      "images": images,
      "lost": lost,
      "deceived": deceived,
    }

  specs = (sharding.REPLICATED, sharding.REPLICATED, sharding.BATCHED)
  return sharding.jit(sharding.shard_map(evaluate_shard, mesh, specs, sharding.BATCHED), mesh)


def make_evaluator(model: nn.Module, attack: attacks.Attack | None, batch_size: int, mesh: Mesh) -> Evaluator:
  """A function (variables, split, key) -> {"correct" [n] bool, "vulnerabilities" [n] float} under one attack.

  With `attack` None, the clean images are evaluated. The randomness of an attack depends only on `key` and the image's
  index, so batch size and device count do not change the results; the last batch is padded and masked. The function is
  compiled once for all calls.
  """
  evaluate_batch, apply = batch_program(attack, "linf", mesh), models.applied(model)

  def evaluate(variables: Variables, split: data.Split, key: Array) -> Arrays:
    results, kept = [], ("predictions", "vulnerabilities")
    key, logits_fn = sharding.replicate(mesh, key), Partial(apply, variables)
    for batch in data.eval_batches(split, batch_size):
      batch = sharding.shard_batch(mesh, batch)
      result = evaluate_batch((logits_fn,), key, batch)
      results.append((*(result[name] for name in kept), batch["mask"]))
    predictions, vulnerabilities, mask = (np.concatenate(x) for x in zip(*sharding.fetch(results), strict=True))
    return {"correct": predictions[mask] == split.labels, "vulnerabilities": vulnerabilities[mask]}

  return evaluate
