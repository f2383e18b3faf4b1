"""Several processes: their run equals the run of one process, and an error on one of them ends all."""

import json
import shutil

import jax
import numpy as np
import pytest

from lrat_jax.core import distributed
from lrat_jax.core.errors import ConfigError
from tests import programs

pytestmark = pytest.mark.slow

SUITE = ["--config.eval.num_images=256", "--config.eval.num_sanity_examples=8"]
# The same run, evaluated with AutoAttack.
AUTOATTACK = [argument for argument in programs.ARGUMENTS if ".suite." not in argument]
AUTOATTACK[0] = AUTOATTACK[0].replace("suite=pgd", "suite=apgd")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The workdir of an uninterrupted run of one process with four devices."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  programs.finish(workdir, *SUITE, devices=4)
  return workdir


@pytest.fixture(scope="module")
def stopped_and_resumed(tmp_path_factory):
  """A run of two processes with two devices each, stopped through the second, finished by one with four.

  Returns the workdir, the two processes' (code, stdout, stderr), and the second run's stdout.
  """
  workdir = tmp_path_factory.mktemp("two") / "run"
  processes = programs.start_together([workdir, workdir], "--mode=train", devices=2)
  programs.wait_for_rows(processes[0], workdir, 3)
  processes[1].terminate()
  ended = [programs.end(process) for process in processes]
  return workdir, ended, programs.finish(workdir, "--mode=train", devices=4)


def _assert_evaluated_alike(workdir, other):
  """Checks that boolean and integer arrays agree in over 98 % of their entries."""
  with np.load(workdir / "per_example.npz") as arrays, np.load(other / "per_example.npz") as arrays_other:
    assert set(arrays.files) == set(arrays_other.files)
    for name in arrays.files:
      if arrays[name].dtype.kind in "bi":
        assert (arrays[name] == arrays_other[name]).mean() > 0.98, name


def test_sigterm_to_one_process_saves_the_same_step_on_all(stopped_and_resumed):
  _, ended, resumed = stopped_and_resumed
  assert [code for code, *_ in ended] == [75, 75]
  step = int(ended[0][2].split("Stopped at step ")[1].split()[0])
  assert f"from step {step} of 34" in resumed
  assert "Stopped" not in ended[1][2] and "epoch" not in ended[1][1]  # only the first process prints


def test_two_processes_then_one_are_the_run_of_one(whole, stopped_and_resumed):
  programs.assert_trained_alike(whole, stopped_and_resumed[0])


def test_one_process_then_two_are_the_run_of_one(whole, tmp_path):
  programs.kill_after(tmp_path / "run", 4, *SUITE, devices=4)
  ended = [programs.end(process) for process in programs.start_together([tmp_path / "run"] * 2, *SUITE, devices=1)]
  assert [code for code, *_ in ended] == [0, 0], ended
  programs.assert_trained_alike(whole, tmp_path / "run")
  _assert_evaluated_alike(whole, tmp_path / "run")
  rows, others = (programs.outcome(path)[2] for path in (whole, tmp_path / "run"))
  assert [row["step"] for row in others] == [row["step"] for row in rows]  # each was written once, by one process
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  assert results["environment"]["num_devices"] == 2


def test_autoattack_by_two_processes_is_that_of_one(whole, tmp_path):
  for name in ("one", "two"):
    shutil.copytree(whole, tmp_path / name)
  options = {"arguments": [*AUTOATTACK, "--config.eval.num_images=100", "--mode=evaluate"]}
  programs.finish(tmp_path / "one", devices=4, **options)
  ended = [programs.end(process) for process in programs.start_together([tmp_path / "two"] * 2, devices=1, **options)]
  assert [code for code, *_ in ended] == [0, 0], ended
  one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
  assert one.pop("environment")["num_devices"] == 4 and two.pop("environment")["num_devices"] == 2
  assert one == two and set(one["robust"]) == {"pgd20", "cw20", "apgd"} and one["n"] == 100
  with np.load(tmp_path / "one" / "per_example.npz") as arrays, np.load(tmp_path / "two" / "per_example.npz") as others:
    for name in arrays.files:  # equal to the bit, except vulnerabilities: other batches change the last bit of logits
      if name.startswith("vulnerability"):
        np.testing.assert_allclose(arrays[name], others[name], atol=1e-6)
      else:
        np.testing.assert_array_equal(arrays[name], others[name])


def test_what_is_wrong_on_one_process_ends_all_with_its_line(tmp_path):
  for name in ("there", "missing"):
    (tmp_path / name).mkdir()
  images = np.zeros((40, 8, 8, 1), np.uint8)
  arrays = {"train_images": images, "train_labels": np.arange(40) % 4, "test_images": images}
  np.savez(tmp_path / "there" / "data.npz", **arrays, test_labels=np.arange(40) % 4)
  others = [f"--coordinator=localhost:{programs.free_port()}", "--num_processes=2", "--config.data.source=npz:data.npz"]
  others += ["--config.data.validation_size=8", "--config.data.batch_size=16"]
  processes = [
    programs.start(tmp_path / "run", *others, f"--process_id={index}", cwd=tmp_path / name)
    for index, name in enumerate(("there", "missing"))
  ]
  ended = [programs.end(process) for process in processes]
  assert [code for code, *_ in ended] == [2, 2]
  assert "error: process 1: config.data.source='npz:data.npz': there is no such file." in ended[0][2]
  assert not (tmp_path / "run").exists()


def test_processes_with_different_configurations_are_refused(tmp_path):
  others = [f"--coordinator=localhost:{programs.free_port()}", "--num_processes=2"]
  processes = [
    programs.start(tmp_path / "run", *others, f"--process_id={index}", f"--config.seed={index}") for index in (0, 1)
  ]
  ended = [programs.end(process) for process in processes]
  assert [code for code, *_ in ended] == [2, 2]
  assert "different configurations" in ended[0][2]


@pytest.mark.parametrize(
  ("arguments", "field"),
  [
    (("localhost:1", None, 0), "--num_processes missing"),
    ((None, 2, None), "--coordinator and --process_id missing"),
    (("localhost", 2, 0), "--coordinator='localhost'"),
    (("localhost:99999", 2, 0), "--coordinator='localhost:99999'"),
    (("localhost:1", 0, 0), "--num_processes=0"),
    (("localhost:1", 2, 2), "--process_id=2"),
    (("localhost:1", 2, -1), "--process_id=-1"),
  ],
)
def test_half_an_address_is_refused(arguments, field):
  with pytest.raises(ConfigError, match=field):
    distributed.join(*arguments)


SRUN = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "a[1-2]"}


@pytest.mark.parametrize(
  ("environment", "platforms", "several"),
  [
    ({}, "", False),
    (SRUN, "", True),
    (SRUN | {"SLURM_NTASKS": "1"}, "", False),
    ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, "", False),  # a batch script that calls the program without srun
    ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, "", True),
    ({}, "tpu,cpu", True),
    ({}, "cpu", False),
  ],
)
def test_launchers_of_several_processes_are_known_by_what_they_leave(environment, platforms, several):
  assert distributed._launched(environment, platforms) == several


def test_a_process_that_nobody_launched_is_alone(monkeypatch):
  monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("nothing to connect to"))
  assert distributed.join() == distributed.Place(0, 1) and distributed.is_primary()


def test_two_processes_train_on_the_mixture_of_one(tmp_path):
  """The extra source's share of every batch, and its images, do not depend on the number of processes."""
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (300, 8, 8, 1)).astype(np.uint8)
  np.savez(tmp_path / "extra.npz", image=images, label=random.integers(0, 10, 300))
  more = [f"--config.data.extra.source=npz:{tmp_path}/extra.npz", "--config.data.extra.fraction=0.4", "--mode=train"]
  programs.finish(tmp_path / "one", *more, devices=2)
  ended = [programs.end(process) for process in programs.start_together([tmp_path / "two"] * 2, *more, devices=1)]
  assert [code for code, *_ in ended] == [0, 0], ended
  programs.assert_trained_alike(tmp_path / "one", tmp_path / "two")
