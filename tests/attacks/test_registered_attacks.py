"""Properties of every registered attack: clean images at strength 0, stronger with strength, the same in any batch.

Each attack that is added to the registry needs a row in `FIELDS`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lrat_jax.attacks import registry
from lrat_jax.core import sharding
from tests.helpers import features

COUNT = 64
WEAK, STRONG = 0.3, 1.0


def _spatial(strength):
  """Grids that contain all weaker grids; the weakest is the image itself."""
  steps = round(2 * strength)
  counts = {"num_rotations": 1 + 2 * steps, "num_translations": 1 + 2 * steps}
  return {"max_rotation": 15.0 * steps, "max_translation": 0.5 * steps} | counts


# Arguments of each attack by strength: 0 leaves images unchanged, 1 often fools the small network.
FIELDS = {
  "fgsm": lambda strength: {"epsilon": 0.1 * strength},
  "pgd": lambda strength: {"epsilon": 0.1 * strength, "step_size": 0.03 * strength, "num_steps": 5},
  "cw": lambda strength: {"epsilon": 0.1 * strength, "step_size": 0.03 * strength, "num_steps": 5},
  "apgd": lambda strength: {"epsilon": 0.1 * strength, "num_steps": 5},
  "fab": lambda strength: {"epsilon": 0.1 * strength, "num_steps": 5},
  "square": lambda strength: {"epsilon": 0.1 * strength, "num_queries": 30},
  "carlini_wagner": lambda strength: {
    "epsilon": strength, "binary_search_steps": 2, "num_steps": 10, "learning_rate": 0.1, "initial_const": 1.0,
  },
  "ddn": lambda strength: {"epsilon": strength, "num_steps": 10},
  "fmn": lambda strength: {"epsilon": 0.1 * strength, "norm": "linf", "num_steps": 10},
  "deepfool": lambda strength: {"epsilon": strength, "num_steps": 5},
  "ead": lambda strength: {
    "epsilon": 5 * strength, "binary_search_steps": 2, "num_steps": 10, "learning_rate": 0.1, "initial_const": 1.0,
  },
  "hop_skip_jump": lambda strength: {"epsilon": 2 * strength, "num_steps": 2, "initial_num_evals": 10},
  "spsa": lambda strength: {"epsilon": 0.1 * strength, "num_steps": 5, "num_samples": 8},
  "msd": lambda strength: {
    "radii": {"linf": 0.1 * strength, "l2": 0.5 * strength},
    "step_sizes": {"linf": 0.03 * strength, "l2": 0.15 * strength},
    "num_steps": 5,
  },
  "spatial": _spatial,
  "unforeseen": lambda strength: {"kind": "elastic", "epsilon": 0.3 * strength, "num_steps": 5},
  "lpips": lambda strength: {"epsilon": 0.4 * strength, "features_fn": features, "num_steps": 5, "num_rounds": 3},
  "corruption": lambda strength: {"kind": "contrast", "severity": round(1 + 4 * strength)},
}  # fmt: skip
# Attacks that change images even at their weakest setting.
NEVER_0 = ("corruption",)


@pytest.fixture(scope="module")
def batch(cnn_logits):
  """(keys, images, labels) of 64 images; labels are the model's predictions, except for every eighth image."""
  images = jax.random.uniform(jax.random.key(11), (COUNT, 8, 8, 1))
  answers = cnn_logits(images).argmax(axis=1)
  labels = jnp.where(jnp.arange(COUNT) % 8 == 7, (answers + 1) % 5, answers)
  return jax.random.split(jax.random.key(12), COUNT), images, labels


@pytest.fixture(scope="module")
def compiled(cnn_logits):
  """(name, strength) -> the attack on the small network, compiled once: (keys, images, labels) -> AttackResult."""

  @functools.cache
  def make(name, strength):
    attack = functools.partial(registry.REGISTRY[name], **FIELDS[name](strength))
    return jax.jit(lambda keys, images, labels: attack(keys, cnn_logits, images, labels))

  return make


def test_every_attack_has_a_row():
  assert set(FIELDS) == set(registry.REGISTRY), "add the attack's arguments at a strength to FIELDS"


@pytest.mark.parametrize("name", sorted(set(FIELDS) - set(NEVER_0)))
def test_strength_0_is_the_clean_accuracy(name, batch, compiled, cnn_logits):
  result = compiled(name, 0.0)(*batch)
  np.testing.assert_allclose(result.images, batch[1], atol=1e-6)
  np.testing.assert_array_equal(result.success, cnn_logits(batch[1]).argmax(axis=1) != batch[2])


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_accuracy_falls_with_strength(name, batch, compiled, cnn_logits):
  clean = np.mean(cnn_logits(batch[1]).argmax(axis=1) == batch[2])
  weak, strong = (1 - compiled(name, strength)(*batch).success.mean() for strength in (WEAK, STRONG))
  assert clean >= weak > strong and strong < clean - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FIELDS))
def test_no_result_depends_on_the_batch_or_the_devices(name, batch, compiled):
  run = compiled(name, STRONG)
  whole = run(*batch)
  specs = {"in_specs": PartitionSpec(sharding.AXIS), "out_specs": PartitionSpec(sharding.AXIS)}
  others = {"2 devices": jax.jit(jax.shard_map(run, mesh=sharding.make_mesh(2), **specs))(*batch)}
  for size in (1, 7):
    parts = [run(*(array[first : first + size] for array in batch)) for first in range(0, COUNT, size)]
    others[f"batches of {size}"] = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
  for how, other in others.items():
    np.testing.assert_allclose(other.images, whole.images, atol=1e-5, err_msg=how)
    np.testing.assert_array_equal(other.success, whole.success, err_msg=how)
    np.testing.assert_array_equal(other.surviving_steps, whole.surviving_steps, err_msg=how)
