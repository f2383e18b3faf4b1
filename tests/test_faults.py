"""What happens to machines: each fault is caused, and a run that goes on then ends in the bits of one without it."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from lrat_jax.training import checkpoints, loop
from tests import programs, soak
from tests.helpers import SMALL, make_config, make_experiment, to_numpy

pytestmark = pytest.mark.slow

CONFIG = {name.replace(".", "__"): value for name, value in SMALL.items()}
CONFIG |= {"data__batch_size": 16, "train__num_logged_examples": 4, "train__checkpoint_every_steps": 3}


@pytest.fixture(scope="module")
def experiment():
  """Two epochs of four steps, saved after steps 3, 4, 6 and 8."""
  return make_experiment(make_config(**CONFIG))


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
  """The workdir of a run that ended, with its checkpoints of steps 6 and 8, of which the second is the best."""
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
  best, _ = loop.load_best(experiment, workdir)
  _halve(workdir / "checkpoints" / str(best) / "metrics" / "metrics")
  step, _ = loop.load_best(experiment, workdir, Console())
  assert step != best and f"The checkpoint of step {best} is damaged" in capsys.readouterr().out


def test_a_clock_that_jumps_changes_nothing(experiment, whole, tmp_path, monkeypatch):
  jumps, now = itertools.cycle([0.0, 36000.0, -36000.0, 3600.0]), time.time
  monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
  loop.train(experiment, tmp_path, Console(quiet=True))
  monkeypatch.undo()
  _assert_same_end(experiment, tmp_path, whole)


def test_a_full_disk_is_one_line_and_spares_the_checkpoints(tmp_path):
  workdir = tmp_path / "run"
  programs.kill_after(workdir, 5, "--mode=train")
  before = {path: path.read_bytes() for path in (workdir / "checkpoints").rglob("*/state/**/*") if path.is_file()}
  # No file may grow beyond what metrics need: to the program the disk is full.
  code = (
    "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000));"
    "from lrat_jax import main; sys.exit(main.main(sys.argv[1:]))"
  )
  command = [sys.executable, "-c", code, *programs.ARGUMENTS, f"--workdir={workdir}", "--mode=train"]
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_ENABLE_COMPILATION_CACHE": "false"}
  done = subprocess.run(command, cwd=programs.ROOT, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 4, done.stderr
  # Orbax's threads may say more of it, before and after, and without regard to where a line of ours ends.
  line = r"error: the checkpoint of step \d+ could not be written: File too large\. .* the same command goes on"
  assert len(re.findall(line, done.stderr)) == 1, done.stderr
  assert {path: path.read_bytes() for path in before} == before and before
  programs.finish(workdir, "--mode=train")
  programs.finish(tmp_path / "whole", "--mode=train")
  soak.assert_same(tmp_path / "whole", workdir)


def test_a_second_process_in_a_workdir_is_refused(tmp_path):
  first = programs.start(tmp_path / "run", "--mode=train")
  programs.wait_for_rows(first, tmp_path / "run", 1)
  first.send_signal(signal.SIGSTOP)  # so that it is still there, however fast it is
  code, _, errors = programs.end(programs.start(tmp_path / "run", "--mode=train"))
  first.send_signal(signal.SIGCONT)
  assert code == 2 and "is in use by another process" in errors and errors.count("\n") == 1
  assert programs.end(first)[0] == 0


@pytest.mark.parametrize(("number", "lines"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_run_that_is_asked_to_stop_saves_says_so_and_ends_in_the_same_bits(tmp_path, number, lines):
  process = programs.start(tmp_path / "run", "--mode=train")
  programs.wait_for_rows(process, tmp_path / "run", 2)
  process.send_signal(number)
  code, _, errors = programs.end(process)
  assert code == 75 and errors.count("\n") == lines and "the same command goes on there" in errors
  programs.finish(tmp_path / "run", "--mode=train")
  programs.finish(tmp_path / "whole", "--mode=train")
  soak.assert_same(tmp_path / "whole", tmp_path / "run", rows=False)


def test_a_run_killed_at_twenty_random_moments_ends_in_the_same_bits(tmp_path):
  report = soak.run(tmp_path, kills=20, seed=0)
  assert sum(report["kills"].values()) == 20 and report["kills"]["while saving"] > 0
  assert report["runs that differ"] == 0 and report["runs"] > 0


def test_a_second_ctrl_c_ends_the_program_at_once(tmp_path):
  process = programs.start(tmp_path / "run", "--mode=train")
  programs.wait_for_rows(process, tmp_path / "run", 2)
  process.send_signal(signal.SIGSTOP)  # so that it does not come to an end between the two
  process.send_signal(signal.SIGINT)
  process.send_signal(signal.SIGCONT)
  while "Ctrl-C again" not in process.stderr.readline():
    assert process.poll() is None
  process.send_signal(signal.SIGINT)
  assert process.wait(timeout=60) in (-signal.SIGINT, 75)  # 75 where it had saved by then
