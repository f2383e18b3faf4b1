"""One attack on the batches of a split, every image once, sharded over the devices: the program, and validation."""

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
# The model, and behind it the one that is attacked, where that is another.
Models = tuple[Partial, ...]
EvaluateBatch = Callable[[Models, Array, dict[str, Array]], dict[str, Array]]
Arrays = dict[str, np.ndarray]

# In place of a class, where logits are NaN or infinite.
NO_PREDICTION = -1


def batch_program(attack: attacks.Attack | None, norm: str, mesh: Mesh) -> EvaluateBatch:
  """(asked, key, batch) -> logits, predictions, vulnerabilities, distances and images [batch, ...] under an attack.

  A batch may hold what is "found" already. An image that the attack left NaN is evaluated as it was, and "lost"
  [batch]. Logits that are not finite predict none.
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
    answered = losses.is_answer(logits)
    return {
      "logits": logits,
      "predictions": jnp.where(answered, jnp.argmax(logits, axis=-1), NO_PREDICTION).astype(jnp.int32),
      "vulnerabilities": jnp.where(answered, reweighting.vulnerability(logits, labels), 1.0),
      "distances": threat_model.length_of(norm)(images - originals),
      "images": images,
      "lost": lost,
    }

  specs = (sharding.REPLICATED, sharding.REPLICATED, sharding.BATCHED)
  return sharding.jit(sharding.shard_map(evaluate_shard, mesh, specs, sharding.BATCHED), mesh)


def make_evaluator(model: nn.Module, attack: attacks.Attack | None, batch_size: int, mesh: Mesh) -> Evaluator:
  """A function (variables, split, key) -> {"correct" [n] bool, "vulnerabilities" [n] float} under one attack.

  `attack` None evaluates the clean images. An image's attack depends on its index under `key` alone, so batch size and
  device count change nothing; the last batch is padded and masked. Compiled once, for every call.
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
