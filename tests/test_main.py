"""The program as users run it: files, exit codes, resuming a stopped run."""

import itertools
import json
import re
import sys
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lrat_jax import attacks, main, models
from lrat_jax.analysis import inspection
from lrat_jax.core import malloc
from lrat_jax.training import metric_writers
from lrat_jax.training.checkpoints import Checkpoints
from tests import programs

pytestmark = pytest.mark.slow

ARGUMENTS = list(programs.RUN)
RESULT_FILES = {
  ".lock", "config.json", "checkpoints", "metrics.jsonl", "tensorboard", "results.json", "timings.json",
  "per_example.npz", "worst_examples.npz", "plots", "weights", "trackers.json",
}  # fmt: skip


class Follower:
  """A tracking service that appends what it receives to a list of the test."""

  identity = "1"
  load = staticmethod(lambda: None)

  def __init__(self, told):
    self._told = told

  def __call__(self, module, workdir, name, config, known):
    return self

  def errors(self, module):
    return ()

  def write(self, step, values):
    self._told.append((step, dict(values)))

  def flush(self):
    pass

  def close(self, failed):
    self._told.append(("closed", failed))


@pytest.fixture(scope="module")
def told():
  """What a tracking service of the small run received."""
  return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, told):
  """The workdir of a small finished run."""
  workdir = tmp_path_factory.mktemp("runs") / "finished"
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(metric_writers._SERVICES, "metric writer", Follower(told))
    assert main.main([*ARGUMENTS, f"--workdir={workdir}", "--track=metric writer"]) == 0
  return workdir


def test_every_attack_of_a_run_takes_as_many_images_as_suit_the_network_and_memory_is_kept(monkeypatch, tmp_path):
  taken, kept, microbatch = [], [], attacks.microbatch
  monkeypatch.setattr(models, "microbatch_size", lambda *of, platform: {("cnn_4", 8, 8, "cpu"): 16}[*of, platform])
  monkeypatch.setattr(attacks, "microbatch", lambda attack, most: taken.append(most) or microbatch(attack, most))
  monkeypatch.setattr(malloc, "disable_malloc_trim", lambda: kept.append(True))
  few = ["--config.train.epochs=1", "--config.eval.num_images=16", f"--workdir={tmp_path}"]
  assert main.main([*ARGUMENTS, *few]) == 0
  inspection.evaluate(tmp_path, num_images=16)
  assert len(taken) >= 8 and set(taken) == {16}  # in the step, in validation, and in three attacks evaluated twice
  assert kept == [True]


def test_a_service_that_follows_is_told_every_row_and_the_result(finished, told):
  *rows, (step, evaluated), end = told
  written = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
  assert [step for step, _ in rows] == [row["step"] for row in written]
  assert rows[0][1]["train/loss"] == written[0]["loss"]
  results = json.loads((finished / "results.json").read_text())
  assert step == results["step"] and evaluated["test/union"] == results["union"]
  assert set(evaluated) == {"test/clean", "test/fgsm", "test/pgd20", "test/cw20", "test/union"}
  assert end == ("closed", False)


def test_a_run_leaves_what_the_design_says(finished):
  assert {path.name for path in finished.iterdir()} == RESULT_FILES
  results = json.loads((finished / "results.json").read_text())
  assert set(results["robust"]) == {"fgsm", "pgd20", "cw20"} and results["n"] == 500
  assert all(0 <= value <= results["clean"] <= 1 for value in [*results["robust"].values(), results["union"]])
  assert results["suite"]["pgd20"]["epsilon"] == "0.2"
  drawn = {
    "training_curves",
    "weight_distributions",
    "weights_by_class",
    "most_moved",
    "worst_examples",
    "inconsistency",
  }
  assert {path.name for path in (finished / "plots").iterdir()} == {f"{stem}.png" for stem in drawn}
  config = json.loads((finished / "config.json").read_text())
  assert config["name"] == "lrat_irat_digits" and config["model"]["name"] == "cnn_4"


def test_metrics_follow_the_run(finished):
  rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
  assert sum(row["steps"] for row in rows if row["split"] == "train") == 2 * (1100 // 64)
  assert [row["epoch"] for row in rows if row["split"] == "validation"] == [0, 1]
  assert all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
  # Reweighting begins halfway: weights are uniform before and differ after.
  spread = {
    row["epoch"]: row["global_weights/q95"] - row["global_weights/q05"] for row in rows if row["split"] == "train"
  }
  assert spread[0] == 0 and spread[1] > 0


def test_weights_on_disk_are_of_the_sampled_instances(finished):
  with np.load(finished / "weights" / "epoch_0001.npz") as arrays:
    assert len(arrays["indices"]) == 1088 and arrays["variants"].tolist() == ["pgd"]
    sums = arrays["natural_weights"] + arrays["adversarial_weights"].sum(axis=1)
    np.testing.assert_allclose(sums, np.maximum(sums, 1), rtol=1e-5)


def test_the_same_command_again_only_evaluates(finished, capsys):
  metrics, results = ((finished / name).read_text() for name in ("metrics.jsonl", "results.json"))
  assert main.main([*ARGUMENTS, f"--workdir={finished}"]) == 0
  assert "is finished" in capsys.readouterr().out
  assert (finished / "metrics.jsonl").read_text() == metrics
  assert (finished / "results.json").read_text() == results


def test_another_suite_may_evaluate_a_finished_run(finished):
  more = ["--mode=evaluate", "--config.eval.batch_size=256", "--config.eval.suite.fgsm.epsilon=0"]
  assert main.main([*ARGUMENTS, *more, f"--workdir={finished}"]) == 0
  results = json.loads((finished / "results.json").read_text())
  assert results["robust"]["fgsm"] == results["clean"]


def test_the_last_checkpoint_is_evaluated_beside_the_best(finished):
  best = (finished / "results.json").read_text()
  assert main.main([*ARGUMENTS, "--config.eval.checkpoint=last", f"--workdir={finished}"]) == 0
  last = json.loads((finished / "last" / "results.json").read_text())
  assert last["step"] == max(int(folder.name) for folder in (finished / "checkpoints").iterdir())
  assert (finished / "results.json").read_text() == best


def test_a_workdir_of_another_configuration_is_refused_with_the_difference(finished, capsys):
  assert main.main([*ARGUMENTS, "--config.seed=5", f"--workdir={finished}"]) == 2
  assert "config.seed: 0 in the workdir, 5 asked for" in capsys.readouterr().err


def test_a_metric_that_is_not_finite_stops_the_run_and_spares_the_checkpoints(tmp_path, capsys):
  fields = {"optimizer.learning_rate": "1e4", "optimizer.schedule": "constant", "train.checkpoint_every_steps": 1}
  broken = [f"--config.{name}={value}" for name, value in fields.items()]
  workdir = tmp_path / "run"
  assert main.main([*ARGUMENTS, *broken, f"--workdir={workdir}"]) == 3
  error = capsys.readouterr().err
  step = int(re.fullmatch(r"error: \w+ is not finite at step (\d+)\..*\n", error)[1])
  with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
    assert checkpoints.latest_step() == step - 1 >= 1
  with ocp.StandardCheckpointer() as reader:
    state = reader.restore(workdir / "checkpoints" / str(step - 1) / "state")
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
  rows = (workdir / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(row)["step"] for row in rows] == list(range(1, step))


def test_a_run_in_a_thread_stops_by_its_argument_and_goes_on(tmp_path):
  """As in a worker thread of a notebook or an app, where JAX was used before and signals cannot be received."""
  codes, calls = [], itertools.count(1)
  arguments = [*ARGUMENTS, f"--workdir={tmp_path / 'run'}"]

  def run(**options):
    thread = threading.Thread(target=lambda: codes.append(main.main(arguments, **options)))
    thread.start()
    thread.join()

  run(stop=lambda: next(calls) == 3)
  assert codes == [main.STOPPED] and not (tmp_path / "run" / "results.json").exists()
  run()
  assert codes == [main.STOPPED, 0] and (tmp_path / "run" / "results.json").exists()
  rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert [row["epoch"] for row in rows if row["split"] == "validation"] == [0, 1]


def _write_npz(path, seed=0, count=60, **more):
  generator = np.random.default_rng(seed)
  make = lambda count: (generator.random((count, 8, 8, 1), np.float32), np.arange(count) % 3)
  arrays = dict(zip(("x_train", "y_train", "x_test", "y_test"), (*make(80), *make(count)), strict=True))
  np.savez(path, **(arrays | more))


def test_a_run_remembers_its_data(tmp_path, capsys):
  """Other data under the same name are refused, and nothing is overwritten; evaluation needs only the test split."""
  path, workdir = tmp_path / "own.npz", tmp_path / "run"
  _write_npz(path)
  arguments = [
    *ARGUMENTS, f"--config.data.source=npz:{path}", "--config.data.validation_size=16", f"--workdir={workdir}",
  ]  # fmt: skip
  assert main.main(arguments) == 0
  before = {file: file.read_bytes() for file in workdir.rglob("*.json")}
  said = json.loads((workdir / "config.json").read_text())["run"]["data"]
  assert said["num_classes"] == 3 and said["test"].startswith("float32 [60, 8, 8, 1] sha256:")
  _write_npz(path, seed=1)
  assert main.main(arguments) == main.main([*arguments, "--mode=evaluate"]) == 2
  assert re.search(
    r"contains a run on different data with the same name \(test: .* before, .* now", capsys.readouterr().err
  )
  _write_npz(path, y_train=np.arange(80) % 5, y_test=np.arange(60) % 5)
  assert main.main(arguments) == 2 and "num_classes: 3 before, 5 now" in capsys.readouterr().err
  assert before == {file: file.read_bytes() for file in workdir.rglob("*.json")}
  _write_npz(path)
  with np.load(path) as arrays:
    test = {name: arrays[name] for name in ("x_test", "y_test")}
  np.savez(path, **test)
  assert main.main([*arguments, "--mode=evaluate"]) == 0
  assert json.loads((workdir / "config.json").read_text())["run"]["data"] == said


def test_a_model_is_evaluated_on_a_few_images_of_many_classes(tmp_path, capsys):
  """Only the test images are needed: training images are not, and sizes that only training uses are not checked."""
  path, workdir = tmp_path / "few.npz", tmp_path / "mine"
  generator = np.random.default_rng(0)
  np.savez(path, images=generator.random((4, 8, 8, 1), np.float32), labels=np.array([0, 999, 5, 7]))
  (tmp_path / "thousand.py").write_text(
    "import jax.numpy as jnp\n"
    "def logits(images): return images.reshape(len(images), -1) @ jnp.cos(jnp.arange(64_000.0)).reshape(64, 1000)\n"
  )
  sys.path.insert(0, str(tmp_path))
  arguments = [
    *ARGUMENTS, f"--config.data.source=npz:{path}", f"--workdir={workdir}", "--model=thousand:logits",
    "--config.data.validation_size=999", "--config.data.batch_size=7",
  ]  # fmt: skip
  try:
    assert main.main(arguments) == 0
    results = json.loads((workdir / "results.json").read_text())
    assert results["n"] == 4 and results["data"]["test"].startswith("float32 [4, 8, 8, 1]")
    np.savez(path, images=generator.random((4, 8, 8, 1), np.float32), labels=np.array([0, 999, 5, 7]))
    assert main.main(arguments) == 2
    assert "contains the results of another evaluation (test: float32 [4, 8, 8, 1]" in capsys.readouterr().err
  finally:
    sys.path.remove(str(tmp_path))
