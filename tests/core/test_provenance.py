"""Provenance of files: version and commit in a run's files; every reader rejects files of another version."""

import json
import shutil
import subprocess

import pytest

from lrat_jax import main
from lrat_jax.convert import exchange
from lrat_jax.core import provenance
from lrat_jax.core.errors import ConfigError
from lrat_jax.report import __main__ as report
from lrat_jax.training import workdir as workdir_lib
from tests.helpers import make_config

# As written by versions before the schema had a number.
OLD_CONFIG = {"name": "at_digits", "train": {"epochs": 1, "log_every": 20}}
OLD_RESULTS = {"clean": 0.5, "worst_case": 0.25, "name": "at", "seed": 0}


def test_a_run_is_not_resumed_in_a_workdir_of_an_earlier_version(tmp_path, capsys):
  (tmp_path / "config.json").write_text(json.dumps(OLD_CONFIG))
  assert main.main(["--config=configs/at.py", f"--workdir={tmp_path}"]) == main.BAD_INPUT
  (line,) = capsys.readouterr().err.splitlines()
  assert f"{tmp_path}/config.json was written by an earlier version" in line


@pytest.mark.parametrize("name, content", [("config.json", OLD_CONFIG), ("results.json", OLD_RESULTS)])
def test_a_report_refuses_files_of_an_earlier_version(tmp_path, capsys, name, content):
  (tmp_path / name).write_text(json.dumps(content))
  assert report.main([str(tmp_path), f"--output={tmp_path}/report.html"]) == report.BAD_INPUT
  assert "was written by an earlier version" in capsys.readouterr().err


def test_a_workdir_of_a_later_version_is_refused(tmp_path):
  workdir_lib.write_config(tmp_path, make_config(), {})
  assert workdir_lib.load_config(tmp_path).name == make_config().name
  saved = json.loads((tmp_path / "config.json").read_text())
  saved["run"]["schema_version"] += 1
  (tmp_path / "config.json").write_text(json.dumps(saved))
  with pytest.raises(ConfigError, match="written by a later version"):
    workdir_lib.load_config(tmp_path)


def test_weights_of_a_workdir_of_an_earlier_version_are_not_converted(tmp_path, monkeypatch):
  (tmp_path / "checkpoints").mkdir()
  (tmp_path / "config.json").write_text(json.dumps(OLD_CONFIG))
  monkeypatch.setattr(exchange, "best_checkpoint", lambda workdir: (1, {}))
  with pytest.raises(exchange.WeightsError, match="written by an earlier version"):
    exchange.read(tmp_path)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """(a package in its own git repository, the commit)."""
  package = tmp_path / "lrat_jax"
  package.mkdir()
  (package / "__init__.py").write_text("")
  git = lambda *words: subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
  git("init", "-q")
  git("add", ".")
  git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "First")
  monkeypatch.setattr(provenance, "_ROOT", package)
  provenance.commit.cache_clear()
  yield package, git("rev-parse", "HEAD").strip()
  provenance.commit.cache_clear()


def test_the_commit_and_whether_files_differ_from_it(checkout):
  package, commit = checkout
  assert provenance.commit() == {"commit": commit, "dirty": False}
  (package / "__init__.py").write_text("x = 1\n")
  provenance.commit.cache_clear()
  assert provenance.commit() == {"commit": commit, "dirty": True}


def test_a_package_that_lies_in_anothers_repository_has_no_commit(checkout, monkeypatch):
  package, _ = checkout
  installed = package.parent / "venv" / "lrat_jax"
  shutil.copytree(package, installed)
  monkeypatch.setattr(provenance, "_ROOT", installed)
  assert provenance.commit() == {"commit": None, "dirty": None}


def test_outside_a_repository_there_is_no_commit(checkout, monkeypatch):
  package, _ = checkout
  shutil.rmtree(package.parent / ".git")
  assert provenance.commit() == {"commit": None, "dirty": None}
