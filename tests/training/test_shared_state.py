"""A state sharded over devices: the same training, a share of the memory, and checkpoints for other devices."""

import jax
import numpy as np
import pytest

from lrat_jax.core import fsdp, hlo, sharding
from lrat_jax.training import loop, phases, rehearsal
from lrat_jax.training import step as step_lib
from lrat_jax.training.checkpoints import Checkpoints, Progress
from tests.helpers import make_config, make_experiment, to_numpy

PLAIN = phases.Phase(use_local_weights=False, use_global_weights=False)
ALL = phases.Phase(use_local_weights=True, use_global_weights=True, use_awp=True)
FIELDS = {
  "data__batch_size": 16,
  "model__name": "cnn_2",
  "train_attacks__pgd__num_steps": 2,
  "train__epsilon_ramp_fraction": 0.0,
  "train__ema_decay": 0.9,
  "optimizer__schedule": "constant",
  "mesh__shard_above": 10,
}
PROGRESS = Progress(data={"next_index": 3}, finished=False)


def _experiment(num_devices, model_devices, **fields):
  return make_experiment(make_config(**FIELDS | {"mesh__model_devices": model_devices} | fields), num_devices)


def _step(experiment, phase):
  made_of = experiment.config, experiment.model, experiment.optimizer, experiment.total_steps, experiment.mesh
  return step_lib.make_train_step(*made_of, phase)


def _batch(experiment, number):
  rows = (np.arange(16) + 16 * number) % len(experiment.dataset.train.labels)
  return sharding.shard_batch(experiment.mesh, experiment.dataset.train.take(rows)._asdict())


def _train(experiment, phase, steps=5):
  step, state = _step(experiment, phase), experiment.initial_state()
  for number in range(steps):
    state, output = step(state, _batch(experiment, number))
  assert step.func._cache_size() == 1  # compiled once: the returned state has the layout of the given one
  return state, output


def _assert_close(state, other):
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)
  jax.tree.map(close, to_numpy(state), to_numpy(other))


METHODS = {
  "momentum": (PLAIN, {"model__name": "cnn_8", "optimizer__clip_norm": 0.5}),
  "adamw": (
    PLAIN,
    {
      "model__name": "cnn_8",
      "optimizer__clip_norm": 0.5,
      "optimizer__name": "adamw",
      "optimizer__learning_rate": 1e-3,
    },
  ),
  "all": (
    ALL,
    {
      "model__name": "wide_resnet_10_1",
      "optimizer__clip_norm": 0.5,
      "awp__gamma": 0.01,
      "local_weights__kind": "lrat",
      "global_weights__kind": "gairat",
      "data__mixup": 0.2,
    },
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_devices_that_share_the_state_train_as_those_that_do_not(method):
  phase, fields = METHODS[method]
  alone, told = _train(_experiment(4, 1, **fields), phase)
  whole = fsdp.bytes_per_device(alone)
  for model_devices in (2, 4):
    state, output = _train(_experiment(4, model_devices, **fields), phase)
    _assert_close(state, alone)
    for name in ("loss", "gradient_norm", "parameter_norm"):
      np.testing.assert_allclose(getattr(output, name), getattr(told, name), rtol=1e-3, err_msg=name)
    np.testing.assert_array_equal(output.indices, told.indices)
    # biases and norms stay replicated
    assert 1 / model_devices <= fsdp.bytes_per_device(state) / whole < 1.15 / model_devices


@pytest.mark.slow
def test_a_step_gathers_each_large_parameter_once_and_scatters_its_gradient():
  experiment = _experiment(4, 2, model__batch_norm="local", model__name="wide_resnet_10_1")
  step, state = _step(experiment, PLAIN), experiment.initial_state()
  split = lambda tree: sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(tree))
  text = step.func.lower(*step.args, state, _batch(experiment, 0)).compile().as_text()
  found = hlo.collectives(text)
  assert found["all-gather"] == split(state.variables) > 5
  assert found["reduce-scatter"] == split(state.variables["params"])
  assert not any(hlo.collectives(body) for body in hlo.loop_bodies(text))


def test_what_a_run_holds_until_its_next_save_lies_as_the_state_does():
  state = _experiment(4, 4).initial_state()
  held = jax.tree.map(jax.numpy.copy, state)
  assert jax.tree.map(lambda leaf: leaf.sharding, held) == jax.tree.map(lambda leaf: leaf.sharding, state)
  assert fsdp.bytes_per_device(state) == fsdp.bytes_per_device(_experiment(4, 4).abstract_state())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """(folder, state) of a checkpoint from four devices, arrays sharded over two; all arrays differ from initial ones."""
  state = jax.tree.map(lambda x: x + 1, _experiment(4, 2).initial_state())
  folder = tmp_path_factory.mktemp("shared")
  with Checkpoints(folder / "checkpoints") as checkpoints:
    checkpoints.save(7, state, PROGRESS, {"clean": 0.5, "robust": 0.25})
  return folder, state


@pytest.mark.parametrize(("num_devices", "model_devices"), [(1, 1), (2, 1), (2, 2), (4, 4)])
def test_a_shared_state_comes_back_to_the_bit_on_other_devices(saved, num_devices, model_devices):
  folder, state = saved
  like = _experiment(num_devices, model_devices).abstract_state()
  with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
    restored, progress = checkpoints.restore(7, like)
    read = checkpoints.read(7)
  assert progress == PROGRESS
  jax.tree.map(np.testing.assert_array_equal, to_numpy(restored), to_numpy(state))
  jax.tree.map(np.testing.assert_array_equal, read["variables"], to_numpy(state.variables))
  assert jax.tree.map(lambda leaf: leaf.sharding, restored) == jax.tree.map(lambda leaf: leaf.sharding, like)


def test_an_evaluation_has_the_variables_whole_wherever_they_were_trained(saved):
  folder, trained = saved
  experiment = _experiment(4, 2)
  step, state = loop.load_checkpoint(experiment, folder)
  assert step == 7
  assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves((state.variables, state.ema)))
  assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state.opt_state))
  jax.tree.map(np.testing.assert_array_equal, to_numpy(state), to_numpy(trained))


@pytest.mark.slow
def test_a_rehearsal_counts_the_parts_that_a_device_keeps():
  def arguments(model_devices):
    config = make_config(**FIELDS | {"mesh__model_devices": model_devices, "train__epochs": 1, "eval__batch_size": 32})
    experiment = make_experiment(config, num_devices=4)
    step, attack = rehearsal.programs(experiment)
    rest = step.arguments - fsdp.bytes_per_device(experiment.abstract_state())
    return rest, attack.arguments

  # The rest is keys and the batch. The validation attack has equal arguments because it takes gathered variables.
  assert arguments(2) == arguments(1)
