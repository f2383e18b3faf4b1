"""SIGTERM: a run checks for it between steps, saves, and reports its step."""

import os
import signal

import pytest
from rich.console import Console

from lrat_jax.core import preemption
from lrat_jax.core.errors import Preempted
from lrat_jax.evaluation import runner
from lrat_jax.training import checkpoints, loop
from tests.helpers import SMALL, make_config, make_experiment

CONFIG = {name.replace(".", "__"): value for name, value in SMALL.items()}
CONFIG |= {"data__batch_size": 16, "train__num_logged_examples": 4}
STEPS = 8


@pytest.fixture(scope="module")
def experiment():
  """Two epochs of four steps each."""
  return make_experiment(make_config(**CONFIG))


def test_a_watch_hears_sigterm_and_gives_the_signal_back():
  before = signal.getsignal(signal.SIGTERM)
  with preemption.Watch() as stop:
    assert not stop()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop() and stop()
  assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.parametrize(("asked_at", "best"), [(1, 1), (3, 3), (4, 4), (7, 4)])
def test_a_run_stops_after_the_step_at_which_it_was_asked_and_has_saved_it(experiment, tmp_path, asked_at, best):
  calls = iter(range(1, 100))
  with pytest.raises(Preempted, match=f"step {asked_at} of {STEPS}"):
    loop.train(experiment, tmp_path, Console(quiet=True), stop=lambda: next(calls) == asked_at)
  with checkpoints.Checkpoints(tmp_path / "checkpoints", read_only=True) as saved:
    # At an epoch's end, validation comes before the stop, so the choice of the best checkpoint does not change.
    assert saved.latest_step() == asked_at and saved.best_step() == best


def test_a_run_that_was_asked_at_its_last_step_is_finished(experiment, tmp_path):
  calls = iter(range(1, 100))
  loop.train(experiment, tmp_path, Console(quiet=True), stop=lambda: next(calls) == STEPS)
  with checkpoints.Checkpoints(tmp_path / "checkpoints", read_only=True) as saved:
    assert saved.restore(saved.latest_step(), experiment.initial_state())[1].finished


def test_a_evaluation_stops_after_a_batch_and_goes_on_behind_it(experiment, tmp_path):
  config, dataset, mesh = make_config(**CONFIG | {"eval__batch_size": 8}), experiment.dataset, experiment.mesh
  logits_fn = lambda images: images.reshape(images.shape[0], -1)[:, :4]
  evaluate = lambda **options: runner.evaluate(
    config, logits_fn, dataset, mesh, tmp_path, Console(quiet=True), about={"name": "mine"}, **options
  )
  calls = iter(range(1, 100))
  with pytest.raises(Preempted, match="evaluation"):
    evaluate(stop=lambda: next(calls) == 4)
  assert len(list((tmp_path / runner.PROGRESS).glob("*.npz"))) == 4
  assert not (tmp_path / "results.json").exists()
  whole = evaluate(stop=lambda: next(calls) > 100)
  assert next(calls) == 4 + 1 + (3 * 3 - 4)  # three attacks with three batches each; four are not repeated
  assert whole["n"] == 21
