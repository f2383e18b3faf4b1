"""Which configuration a folder belongs to: every difference is named, and what changes no result is none."""

import json

import pytest

from lrat_jax.core.errors import ConfigError
from lrat_jax.training import workdir
from tests.helpers import make_config


def test_differences_are_listed_field_by_field(tmp_path):
  workdir.write_config(tmp_path, make_config(local_weights__slope=3.0), {})
  saved = json.loads((tmp_path / "config.json").read_text())
  saved["beta"], saved["old"] = 2.0, 1
  (tmp_path / "config.json").write_text(json.dumps(saved))
  with pytest.raises(ConfigError) as refusal:
    workdir.check(tmp_path, make_config(seed=4))
  lines = str(refusal.value).partition("(")[2].partition(")")[0].split("; ")
  assert lines == [
    "config.beta: 2.0 in the workdir, 6.0 asked for",
    "config.local_weights.slope: 3.0 in the workdir, 5.0 asked for",
    "config.old: 1 in the workdir, 'absent' asked for",
    "config.seed: 0 in the workdir, 4 asked for",
  ]


def test_what_is_evaluated_and_where_things_are_kept_may_differ(tmp_path):
  workdir.write_config(tmp_path, make_config(), {})
  workdir.check(tmp_path, make_config(eval__num_images=3, data__data_dir="/elsewhere", compilation_cache="off"))


def test_a_portable_configuration_says_nothing_of_the_machine():
  here, there = make_config(data__data_dir="/here"), make_config(data__data_dir="/there", data__placement="host")
  assert workdir.portable(here) == workdir.portable(there) != workdir.portable(make_config(eval__num_images=3))


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
  def refuse(*_, **__):
    raise NotImplementedError

  monkeypatch.setattr(workdir.filelock.FileLock, "acquire", refuse)
  with workdir.lock_workdir(tmp_path / "run"):
    assert (tmp_path / "run").is_dir()
  assert capsys.readouterr().err.startswith(f"warning: --workdir={tmp_path}/run is on a file system without locks")
