"""Damaged checkpoints and jumping clocks: a run continues and ends in the same bits as a run without the fault."""

import itertools
import os
import shutil
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from lrat_jax.training import checkpoints, loop
from tests.helpers import SMALL, make_config, make_experiment, to_numpy

CONFIG = {name.replace(".", "__"): value for name, value in SMALL.items()}
CONFIG |= {"data__batch_size": 16, "train__num_logged_examples": 4, "train__checkpoint_every_steps": 3}


@pytest.fixture(scope="module")
def experiment():
  """Two epochs of four steps, saved after steps 3, 4, 6 and 8."""
  return make_experiment(make_config(**CONFIG))


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
  """The workdir of a finished run, with its checkpoints of steps 6 and 8; that of step 8 is the best."""
  workdir = tmp_path_factory.mktemp("whole")
  loop.train(experiment, workdir, Console(quiet=True))
  return workdir


def _final_state(experiment, workdir):
  with checkpoints.Checkpoints(workdir / "checkpoints", read_only=True) as saved:
    assert saved.latest_step() == 8
    return to_numpy(saved.restore(8, experiment.initial_state())[0])


def _assert_same_end(experiment, workdir, whole):
  jax.tree.map(np.testing.assert_array_equal, _final_state(experiment, workdir), _final_state(experiment, whole))


def _halve(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0x10
  path.write_bytes(bytes(content))


DAMAGES = {"halved": _halve, "emptied": lambda path: path.write_bytes(b""), "flipped": _flip, "gone": os.unlink}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_to_a_file_that_a_restore_reads_is_seen(whole, tmp_path, damage):
  source = whole / "checkpoints" / "8"
  listed = [path for path in source.rglob("*") if path.is_file() and path.name not in checkpoints._UNLISTED]
  assert len(listed) > 5
  for number, path in enumerate([*listed, source / "sha256.json"]):
    folder = tmp_path / str(number) / "checkpoints"
    shutil.copytree(whole / "checkpoints", folder)
    DAMAGES[damage](folder / "8" / path.relative_to(source))
    (line,) = checkpoints.quarantine_damaged(folder)
    assert line.startswith("The checkpoint of step 8 is damaged: ") and "\n" not in line
    assert [path.name for path in folder.iterdir()] == ["6"]
    assert (folder.parent / "damaged_checkpoints" / "8_1").is_dir()
    assert checkpoints.quarantine_damaged(folder) == []


@pytest.mark.parametrize(("steps", "goes_on"), [((8,), 6), ((8, 6), None)])
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(experiment, whole, tmp_path, capsys, steps, goes_on):
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  for step in steps:
    _flip(max((workdir / "checkpoints" / str(step) / "state").rglob("*"), key=lambda path: path.stat().st_size))
  loop.train(experiment, workdir, Console())
  said = capsys.readouterr().out
  for step in steps:
    assert f"warning: The checkpoint of step {step} is damaged: " in said
  assert (f"Resuming {workdir} from step {goes_on} of 8." in said) == (goes_on is not None)
  _assert_same_end(experiment, workdir, whole)


def test_the_best_of_the_whole_checkpoints_is_evaluated(experiment, whole, tmp_path, capsys):
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  best, _ = loop.load_checkpoint(experiment, workdir)
  _halve(workdir / "checkpoints" / str(best) / "metrics" / "metrics")
  step, _ = loop.load_checkpoint(experiment, workdir, Console())
  assert step != best and f"The checkpoint of step {best} is damaged" in capsys.readouterr().out


def test_a_clock_that_jumps_changes_nothing(experiment, whole, tmp_path, monkeypatch):
  jumps, now = itertools.cycle([0.0, 36000.0, -36000.0, 3600.0]), time.time
  monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
  loop.train(experiment, tmp_path, Console(quiet=True))
  monkeypatch.undo()
  _assert_same_end(experiment, tmp_path, whole)
