"""The training loop: the best epoch is found and saved even if checkpoints are rare."""

import jax
import numpy as np
import pytest
from rich.console import Console

from lrat_jax.core.errors import ConfigError, Preempted
from lrat_jax.training import checkpoints, metrics
from lrat_jax.training import loop as loop_lib
from tests import programs
from tests.helpers import SMALL, make_config, make_experiment

CONFIG = {name.replace(".", "__"): value for name, value in SMALL.items()}
CONFIG |= {"data__batch_size": 16, "train__num_logged_examples": 4, "train__epochs": 5}
STEPS_AN_EPOCH = 4


@pytest.fixture(scope="module")
def experiment():
  """Five epochs of four steps each; in total, fewer steps than between two checkpoints."""
  return make_experiment(make_config(**CONFIG))


@pytest.fixture
def validated(monkeypatch):
  """A dictionary {epoch, from 1: robust accuracy} that replaces the results of validation."""
  robust = {}

  def score(self, variables):
    return {"clean": 0.9, "robust": robust[int(self.epoch) + 1]}

  def count(loop, epoch, show, run_epoch=loop_lib._Loop._run_epoch):
    loop._validate.epoch = epoch
    return run_epoch(loop, epoch, show)

  monkeypatch.setattr(loop_lib._Validator, "__call__", score)
  monkeypatch.setattr(loop_lib._Loop, "_run_epoch", count)
  return robust


@pytest.mark.slow
@pytest.mark.parametrize(
  ("robust", "best"), [((0.1, 0.5, 0.3, 0.5, 0.2), 2), ((0.5, 0.4, 0.3, 0.2, 0.1), 1), ((0.1, 0.2, 0.3, 0.4, 0.5), 5)]
)
@pytest.mark.parametrize("asked_at", [None, 6, 8, 10, 14])
def test_the_first_of_the_best_epochs_is_evaluated_wherever_the_run_was_stopped(
  experiment, validated, tmp_path, robust, best, asked_at
):
  validated.update(enumerate(robust, start=1))
  if asked_at is not None:
    calls = iter(range(1, 100))
    with pytest.raises(Preempted):
      loop_lib.train(experiment, tmp_path, Console(quiet=True), stop=lambda: next(calls) == asked_at)
  loop_lib.train(experiment, tmp_path, Console(quiet=True))
  assert loop_lib.load_checkpoint(experiment, tmp_path)[0] == STEPS_AN_EPOCH * best
  assert loop_lib.load_checkpoint(experiment, tmp_path, last=True)[0] == STEPS_AN_EPOCH * len(robust)
  assert len(list((tmp_path / "checkpoints").iterdir())) <= 3
  rows = metrics.read_rows(tmp_path / "metrics.jsonl")
  assert [row["robust"] for row in rows if row["split"] == "validation"] == list(robust)
  assert len(list((tmp_path / "weights").iterdir())) == len(robust)


@pytest.mark.slow
def test_the_held_epoch_is_the_state_that_was_validated(experiment, validated, tmp_path):
  """Not a later state: training continues and reuses the buffers of the old state."""
  validated.update({1: 0.1, 2: 0.9, 3: 0.1, 4: 0.1, 5: 0.1})
  with pytest.raises(Preempted):
    calls = iter(range(1, 100))
    loop_lib.train(
      experiment, tmp_path / "stopped", Console(quiet=True), stop=lambda: next(calls) == 2 * STEPS_AN_EPOCH
    )
  loop_lib.train(experiment, tmp_path / "whole", Console(quiet=True))
  states = []
  for name in ("stopped", "whole"):
    with checkpoints.Checkpoints(tmp_path / name / "checkpoints", read_only=True) as saved:
      states.append(saved.restore(2 * STEPS_AN_EPOCH, experiment.initial_state()))
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), states[0][0], states[1][0])
  assert states[0][1] == states[1][1]


@pytest.mark.parametrize(
  ("part", "field"), [("train_step", "config.data.batch_size=16"), ("validation", "config.eval.batch_size=128")]
)
def test_memory_that_is_too_small_is_a_line_with_the_field_to_lower(experiment, tmp_path, monkeypatch, part, field):
  def fail(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

  if part == "train_step":
    monkeypatch.setattr(loop_lib.step_lib, "make_train_step", lambda *_: fail)
  else:
    monkeypatch.setattr(loop_lib._Validator, "__call__", fail)
  with pytest.raises(ConfigError, match=f"{field} is too large for the memory of .*; lower it"):
    loop_lib.train(experiment, tmp_path, Console(quiet=True))


def test_what_trains_in_bfloat16_is_evaluated_in_float32():
  images = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
  experiment = make_experiment(make_config(model__dtype="bfloat16"))
  state = experiment.initial_state()
  trained, evaluated = experiment.model.apply(state.variables, images), experiment.logits_fn(state)(images)
  plain = make_experiment(make_config(model__dtype="float32"))
  np.testing.assert_array_equal(evaluated, plain.model.apply(state.variables, images))
  assert np.abs(np.asarray(trained) - np.asarray(evaluated)).max() > 1e-4


@pytest.mark.slow
def test_rows_may_be_further_apart_than_devices_can_lag_behind(tmp_path):
  more = ("--config.train.epochs=1", "--config.train.log_every_steps=200", "--config.data.batch_size=16")
  slow = ("--config.model.name=cnn", "--config.train_attacks.pgd.num_steps=20", "--mode=train")
  code, _, errors = programs.end(programs.start(tmp_path / "run", *more, *slow, arguments=programs.RUN))
  assert code == 0, errors[-500:]
