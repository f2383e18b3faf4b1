"""A workdir of an earlier version is refused in one line, by every command that reads it."""

import json

import pytest

from lrat_jax import main
from lrat_jax.core import versions
from lrat_jax.core.errors import ConfigError
from lrat_jax.report import __main__ as report

OLD_CONFIG = {"name": "at_digits", "train": {"epochs": 1, "log_every": 20}}


def test_a_run_is_not_resumed_in_a_workdir_of_an_earlier_version(tmp_path, capsys):
  (tmp_path / "config.json").write_text(json.dumps(OLD_CONFIG))
  assert main.main(["--config=configs/at.py", f"--workdir={tmp_path}"]) == main.BAD_INPUT
  (line,) = capsys.readouterr().err.splitlines()
  assert f"{tmp_path}/config.json was written by an earlier version" in line


def test_a_report_refuses_results_of_an_earlier_version(tmp_path, capsys):
  (tmp_path / "results.json").write_text(json.dumps({"clean": 0.5, "worst_case": 0.25, "name": "at", "seed": 0}))
  assert report.main([str(tmp_path), f"--output={tmp_path}/report.html"]) == report.BAD_INPUT
  assert "was written by an earlier version" in capsys.readouterr().err


@pytest.mark.parametrize("content", [{}, {"train": {"log_every_steps": 1}}, {"union": 0.5, "train": 3}])
def test_a_file_of_this_version_passes(tmp_path, content):
  versions.refuse_earlier(tmp_path, content)


@pytest.mark.parametrize("content", [OLD_CONFIG, {"epsilons": {}}, {"awp": {"begin": 0.0}}])
def test_an_old_name_gives_it_away(tmp_path, content):
  with pytest.raises(ConfigError, match="earlier version"):
    versions.refuse_earlier(tmp_path, content)
