"""The command on a page reproduces the configuration of the run, and the changes are relative to its preset."""

import shlex
from pathlib import Path

import pytest

from lrat_jax.config import command_line
from lrat_jax.report import repeat, runs
from lrat_jax.training import workdir as workdir_lib

ROOT = Path(__file__).parent.parent.parent


def _run(*arguments, workdir="runs/it"):
  options = command_line.parse([*arguments, f"--workdir={workdir}"])
  config = options.config
  more = {"results": None, "per_example": None, "timings": None, "rows": [], "weights": None, "worst": None}
  asked = {"preset": options.preset, "arguments": list(options.arguments)}
  return runs.Run(Path(workdir), config.name, config.seed, config=config, **asked, **more)


@pytest.mark.parametrize("preset", ["lrat:digits,pgd,cw,suite=unforeseen", "configs/irat.py:svhn", "at"])
def test_a_configuration_without_changes_has_none(preset, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert repeat.changes(_run(f"--config={preset}")) == []


def test_changes_are_those_to_the_preset():
  fields = ["--config.optimizer.boundary_fractions=(0.3,0.6)", "--config.seed=2", "--config.data.data_dir=/here"]
  assert repeat.changes(_run("--config=irat:svhn", "--config.global_weights.kind=mail", *fields)) == [
    repeat.Change("global_weights.kind", "mail", "gairat"),
    repeat.Change("optimizer.boundary_fractions", [0.3, 0.6], [0.5, 0.75]),
    repeat.Change("seed", 2, 0),
  ]


def test_a_file_of_the_users_is_not_run(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text("from lrat_jax.config.methods import at as get_config\n")
  run = _run(f"--config={file}")
  file.write_text("raise SystemExit")
  assert repeat.changes(run) is None and f"--config={file}" in repeat.command(run)


def test_the_command_makes_the_configuration_again():
  fields = ["--config.local_weights.kind=lrat", "--config.data.source=idx:a folder/x"]
  run = _run("--config=trades:digits,kl,cw", *fields, "--mode=train", workdir="runs/a b")
  words = shlex.split(repeat.command(run))
  assert words[:3] == ["python", "-m", "lrat_jax.main"] and words[-1] == "--workdir=runs/a b"
  again = command_line.parse(words[3:])
  assert workdir_lib.portable(again.config) == workdir_lib.portable(run.config) and again.mode == "train_and_evaluate"
