"""Checkpoints: states are restored to the bit, also on other devices; the best and the latest are kept."""

import jax
import numpy as np
import pytest

from lrat_jax.training.checkpoints import Checkpoints, Progress
from tests.helpers import make_config, make_experiment, to_numpy

PROGRESS = Progress(data={"next_index": 3}, finished=False)


@pytest.fixture(scope="module")
def state():
  """A state in which every array differs from that of an initial state."""
  state = make_experiment(make_config(model__name="wide_resnet_10_1", train__ema_decay=0.9)).initial_state()
  return jax.tree.map(lambda x: x + 1, state)


def test_a_state_comes_back_to_the_bit_on_any_number_of_devices(tmp_path, state):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(7, state, PROGRESS, {"clean": 0.5, "robust": 0.25})
  config = make_config(model__name="wide_resnet_10_1", train__ema_decay=0.9)
  for num_devices in (1, 4):
    like = make_experiment(config, num_devices).initial_state()
    with Checkpoints(tmp_path) as checkpoints:
      restored, progress = checkpoints.restore(checkpoints.latest_step(), like)
    assert progress == PROGRESS
    jax.tree.map(np.testing.assert_array_equal, to_numpy(restored), to_numpy(state))
    assert all(len(leaf.sharding.device_set) == num_devices for leaf in jax.tree.leaves(restored))


def test_the_best_and_the_latest_are_kept(tmp_path):
  state = {"w": np.zeros(2)}
  with Checkpoints(tmp_path) as checkpoints:
    for step, robust in {1: 0.1, 2: 0.8, 3: None, 4: 0.8, 5: 0.8, 6: 0.3, 7: None}.items():
      validation = None if robust is None else {"clean": 0.9, "robust": robust}
      checkpoints.save(step, state, PROGRESS, validation)
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.latest_step() == 7
    assert checkpoints.best_step() == 2  # the first of those with the same accuracy
  assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 3


def test_without_a_validation_the_newest_is_the_best(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step() is None and checkpoints.best_step() is None
    checkpoints.save(1, {"w": np.zeros(2)}, PROGRESS, None)
    checkpoints.save(2, {"w": np.zeros(2)}, PROGRESS, None)
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.best_step() == 2
