"""Trackers: the real packages, offline, receive every row; a service that fails is not used any more."""

import subprocess
import sys
import time
import types

import pytest
from rich.console import Console

from lrat_jax.core.errors import ConfigError
from lrat_jax.training import metric_writers, metrics
from tests.helpers import make_config

ROWS = [
  {"split": "train", "step": 3, "epoch": 0, "steps": 3, "loss": 0.8125},
  {"split": "validation", "step": 3, "epoch": 0, "clean": 0.4375, "robust": 0.21875},
]
RESULTS = {"split": "test", "step": 3, "clean": 0.59375, "robust": {"pgd20": 0.15625}, "union": 0.140625}
TOLD = {
  "train/loss": 0.8125,
  "validation/clean": 0.4375,
  "validation/robust": 0.21875,
  "test/clean": 0.59375,
  "test/pgd20": 0.15625,
  "test/union": 0.140625,
}


@pytest.fixture
def console(tmp_path):
  with (tmp_path / "said.txt").open("w") as file:
    yield Console(file=file, width=200)


def follow(names, workdir, console):
  """Writes two rows and a result, as a run does, with these services as trackers."""
  with metric_writers.opened(metric_writers.find(names), workdir, make_config(), console) as writers:
    with metrics.MetricWriter(workdir, 0, writers=writers) as writer:
      for row in ROWS:
        writer.write(row)
      writer.flush()
    metric_writers.write_results(writers, RESULTS)


@pytest.fixture
def mlflow_client(tmp_path, monkeypatch):
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
  import mlflow

  return mlflow.MlflowClient()


@pytest.mark.slow
def test_mlflow_has_every_number_and_field_and_one_run_over_two_tries(tmp_path, console, mlflow_client):
  for _ in range(2):  # the second time as if the first run had been killed
    follow(["mlflow"], tmp_path, console)
  (run,) = mlflow_client.search_runs([mlflow_client.get_experiment_by_name("lrat_jax").experiment_id])
  assert run.data.metrics == TOLD and run.info.status == "FINISHED" and run.info.run_name == "test_digits_seed0"
  assert run.data.params["data.batch_size"] == "64" and run.data.params["train_attacks.pgd.epsilon"] == "0.2"
  assert {entry.step for entry in mlflow_client.get_metric_history(run.info.run_id, "train/loss")} == {3}


def test_a_run_that_ends_in_an_error_is_failed_there(tmp_path, console, mlflow_client):
  with (
    pytest.raises(KeyError, match="the run's own"),
    metric_writers.opened(metric_writers.find(["mlflow"]), tmp_path, make_config(), console),
  ):
    raise KeyError("the run's own")
  (run,) = mlflow_client.search_runs([mlflow_client.get_experiment_by_name("lrat_jax").experiment_id])
  assert run.info.status == "FAILED"


@pytest.mark.slow
def test_weights_and_biases_has_every_number_and_field(tmp_path, console, monkeypatch):
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  follow(["wandb"], tmp_path, console)
  (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
  identity = metric_writers.files.read_json(tmp_path / "trackers.json")["wandb"]
  assert path.name == f"run-{identity}.wandb"
  expected = [text for name, value in TOLD.items() for text in (name, str(value))]
  expected += ["local_weights", "test_digits_seed0"]
  missing, deadline = expected, time.monotonic() + 60
  while missing and time.monotonic() < deadline:  # a separate process writes the file, possibly late
    written = path.read_bytes()
    missing = [text for text in expected if text.encode() not in written]
    time.sleep(0.1)
  assert not missing


class _Broken:
  """A service that accepts the first row and fails at the second."""

  identity, told = "1", 0
  load = staticmethod(lambda: None)

  def __init__(self, *arguments):
    pass

  @staticmethod
  def errors(module):
    return (ConnectionError,)

  def write(self, step, values):
    self.told += 1
    if self.told > 1:
      raise ConnectionError("no route\nto host")

  def flush(self):
    raise AssertionError("a service that failed is asked again")

  def close(self, failed):
    raise AssertionError("a service that failed is asked again")


def test_a_service_that_fails_is_left_aside_and_the_run_goes_on(tmp_path, console, monkeypatch):
  monkeypatch.setitem(metric_writers._SERVICES, "broken", _Broken)
  follow(["broken"], tmp_path, console)
  console.file.flush()
  said = (tmp_path / "said.txt").read_text()
  assert said == (
    "warning: broken failed, and nothing more is sent to it; metrics.jsonl contains everything (no route to host)\n"
  )
  assert len(metrics.read_rows(tmp_path / "metrics.jsonl")) == 2


def test_what_cannot_follow_is_named(monkeypatch, tmp_path, console):
  with pytest.raises(ConfigError, match=r"--track=comet: 'comet' is unknown; choose from \['mlflow', 'wandb'\]"):
    metric_writers.find(["comet"])
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ConfigError, match=r"--track=wandb needs a package: pip install wandb"):
    metric_writers.find(["wandb"])


def test_a_service_that_refuses_to_begin_ends_in_one_line(tmp_path, console):
  class Refusing(_Broken):
    def __init__(self, *arguments):
      raise ConnectionError("no login")

  service = metric_writers._Service("broken", Refusing, types.ModuleType("broken"))
  with (
    pytest.raises(ConfigError, match="--track=broken: no login"),
    metric_writers.opened([service], tmp_path, make_config(), console),
  ):
    raise AssertionError("never reached")


@pytest.mark.slow
def test_tensorboard_leaves_pytorch_to_who_needs_it(tmp_path):
  pytest.importorskip("torch", reason="without PyTorch nothing could import it")
  code = f"""
import pathlib, sys
from lrat_jax.training import metric_writers
writer = metric_writers.TensorBoard(pathlib.Path({str(tmp_path)!r}), 0)
writer.write(1, {{"loss": 0.5}})
writer.flush()
assert "torch" not in sys.modules
import torch
torch.zeros(1)
"""
  subprocess.run([sys.executable, "-c", code], check=True)
  assert any(tmp_path.glob("events.out.tfevents.*"))


def test_nothing_is_imported_unless_asked_for():
  code = "import sys; from lrat_jax import main; print({'wandb', 'mlflow'} & set(sys.modules))"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "set()"
