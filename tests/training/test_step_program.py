"""The compiled training step: its result on several devices, its collectives, and its attack loop."""

import re

import jax
import numpy as np
import pytest

from lrat_jax import data
from lrat_jax.core import hlo, sharding
from tests.helpers import make_config, make_experiment, to_numpy
from tests.training.step_case import BOTH, FIELDS, LOCAL, PERTURBED, PLAIN, lowered, make_batch, make_step, train


@pytest.mark.slow
@pytest.mark.parametrize(
  ("model", "objective", "phase", "devices"),
  [
    ("cnn_2", "mart", PERTURBED, (1, 2, 4)),
    ("wide_resnet_10_1", "ce", BOTH, (1, 4)),
    ("xcit_1_16_2_p4", "ce", BOTH, (1, 2)),
    ("swin_2_32_patch1_window4", "ce", BOTH, (1, 2)),
  ],
)
def test_several_devices_train_the_model_of_one(model, objective, phase, devices):
  fields = {"model__name": model, "data__crop_padding": 1, "data__flip": True, "train__ema_decay": 0.9}
  fields |= {"objective": objective, "awp__gamma": 0.01}
  (alone, outputs), *others = (train(n, phase, steps=5, **fields) for n in devices)
  for state, other_outputs in others:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), state, alone)
    np.testing.assert_allclose(other_outputs[0].global_weights, outputs[0].global_weights, rtol=1e-4)
    np.testing.assert_array_equal(other_outputs[0].indices, outputs[0].indices)
  assert not np.allclose(jax.tree.leaves(alone.variables["params"])[0], jax.tree.leaves(alone.ema["params"])[0])


@pytest.mark.slow
def test_one_compiled_program_serves_every_seed_and_each_has_its_own_noise():
  texts, outputs = [], []
  for seed in (0, 1):
    experiment = make_experiment(make_config(**FIELDS | {"seed": seed, "optimizer__learning_rate": 0.0}))
    texts.append(lowered(experiment, LOCAL).as_text())
    # Both seeds get the same parameters, so that only the attack's random start differs.
    state = make_experiment(make_config(**FIELDS)).initial_state()
    outputs.append(to_numpy(make_step(experiment, LOCAL)(state, make_batch(experiment, 0))[1]))
  assert texts[0] == texts[1]
  assert np.abs(outputs[0].vulnerabilities - outputs[1].vulnerabilities).max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn_2", "wide_resnet_10_1"])
def test_the_compiled_attack_loop_holds_no_collective(model):
  experiment = make_experiment(make_config(**FIELDS | {"model__name": model}), num_devices=2)
  text = lowered(experiment, BOTH).compile().as_text()
  bodies = hlo.loop_bodies(text)
  assert any("conv" in body for body in bodies)  # the attack's loop is among them
  assert hlo.collectives(text) and not any(hlo.collectives(body) for body in bodies)


@pytest.mark.slow
def test_attacks_that_see_the_batchs_statistics_join_them_over_the_devices_at_every_step():
  fields = {"model__name": "wide_resnet_10_1", "train__attack_batch_norm": "train"}
  experiment = make_experiment(make_config(**FIELDS | fields), num_devices=2)
  text = lowered(experiment, PLAIN).compile().as_text()
  assert any(hlo.collectives(body) for body in hlo.loop_bodies(text))


def _collectives(**fields):
  experiment = make_experiment(make_config(**FIELDS | {"model__name": "wide_resnet_10_1"} | fields), num_devices=2)
  return hlo.collectives(lowered(experiment, PLAIN).compile().as_text())


@pytest.mark.slow
def test_a_step_with_statistics_per_device_holds_one_collective():
  assert _collectives(model__batch_norm="local") == {"all-reduce": 1}
  assert _collectives(model__batch_norm="local", train__attack_batch_norm="train") == {"all-reduce": 1}
  assert sum(_collectives().values()) > 1


@pytest.mark.slow
def test_a_resnet_18_holds_one_collective_where_it_held_one_for_each_layer_and_pass():
  fields = {"model__name": "resnet18_2"}
  # The means and variances of its 20 batch norms share all-reduces, in the forward and in the backward pass.
  assert _collectives(**fields) == {"all-reduce": 35}
  assert _collectives(**fields, model__batch_norm="local") == {"all-reduce": 1}


@pytest.mark.slow
def test_statistics_per_device_are_of_each_devices_images_and_their_averages_the_mean():
  """On two devices the running averages are the mean over two runs on one device, each on half of the batch."""
  fields = {"model__name": "wide_resnet_10_1", "model__batch_norm": "local", "train_attacks__pgd__epsilon": "0"}
  fields |= {"train__ema_decay": 0.9, "train_attacks__pgd__num_steps": 1}
  config = make_config(**FIELDS | fields)
  experiment = make_experiment(config, num_devices=2)
  state, _ = make_step(experiment, PLAIN)(experiment.initial_state(), make_batch(experiment, 0))
  for leaf in jax.tree.leaves(state):
    for shard in leaf.addressable_shards[1:]:
      np.testing.assert_array_equal(shard.data, leaf.addressable_shards[0].data)
  alone, halves = make_experiment(config, num_devices=1), []
  for half in (0, 1):
    after, _ = make_step(alone, PLAIN)(alone.initial_state(), make_batch(alone, half, size=8))
    halves.append(to_numpy(after.variables))
  for tree in ("params", "batch_stats"):
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *(half[tree] for half in halves))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), to_numpy(state.variables[tree]), expected)
  whole = make_experiment(config.copy_and_resolve_references(), num_devices=1)
  together, _ = make_step(whole, PLAIN)(whole.initial_state(), make_batch(whole, 0))
  differences = jax.tree.map(
    lambda a, b: np.abs(a - b).max(),
    to_numpy(together.variables["batch_stats"]),
    to_numpy(state.variables["batch_stats"]),
  )
  assert max(jax.tree.leaves(differences)) > 1e-4


@pytest.mark.slow
def test_what_depends_on_the_model_alone_is_taken_out_of_the_attacks_loop():
  experiment = make_experiment(make_config(**FIELDS | {"model__name": "wide_resnet_10_2"}), shape=(8, 8, 3))
  attack_loop = max(hlo.loop_bodies(lowered(experiment, LOCAL).compile().as_text()), key=len)
  # A square root would be that of the folded batch norm; a product with 9 rows, the transform of a 3x3 kernel.
  assert "rsqrt" not in attack_loop
  assert not re.search(r"dot\(.*\[9,", attack_loop)


def test_a_step_needs_no_transfer_beyond_its_batch():
  experiment = make_experiment(make_config(**FIELDS), num_devices=2)
  for placement in ("device", "host"):
    place = data.make_device_put(experiment.dataset.train, experiment.mesh, placement)
    batches = data.train_batches(experiment.dataset.train, 16, 0, place)
    step, state = make_step(experiment, BOTH), experiment.initial_state()
    with jax.transfer_guard("disallow"):
      for _ in range(3):
        state, output = step(state, next(batches))
    assert np.isfinite(sharding.fetch(output.loss))
