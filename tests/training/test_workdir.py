"""The configuration of a workdir: every difference is named, except in fields that change no result."""

import functools
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


def _write_without(folder, *paths, **fields):
  """Writes config.json as a version in which some fields did not exist yet."""
  workdir.write_config(folder, make_config(**fields), {})
  saved = json.loads((folder / "config.json").read_text())
  for path in paths:
    *groups, name = path.split(".")
    functools.reduce(lambda group, key: group[key], groups, saved).pop(name)
  (folder / "config.json").write_text(json.dumps(saved))


def test_fields_that_came_later_are_at_their_defaults_and_one_line_names_them(tmp_path, capsys):
  _write_without(tmp_path, "train.label_smoothing", "data.extra", "model.batch_norm", seed=3)
  workdir.check(tmp_path, make_config(seed=3))
  absent = "config.data.extra.fraction, config.data.extra.source, config.model.batch_norm, config.train.label_smoothing"
  said = capsys.readouterr().err
  assert said == f"note: {tmp_path}/config.json was written before {absent} existed; defaults are used instead.\n"
  assert workdir.portable(workdir.load_config(tmp_path)) == workdir.portable(make_config(seed=3))
  assert capsys.readouterr().err == said
  assert workdir.read_config(tmp_path / "config.json")["train"]["label_smoothing"] == 0.0
  assert not capsys.readouterr().err


def test_a_field_that_came_later_must_be_at_its_default_and_another_is_no_field(tmp_path):
  _write_without(tmp_path, "train.label_smoothing")
  with pytest.raises(ConfigError, match="config.train.label_smoothing: 0.0 in the workdir, 0.1 asked for"):
    workdir.check(tmp_path, make_config(train__label_smoothing=0.1))
  (tmp_path / "other").mkdir()
  _write_without(tmp_path / "other", "train.epochs")
  with pytest.raises(ConfigError, match="config.train.epochs: 'absent' in the workdir, 40 asked for"):
    workdir.check(tmp_path / "other", make_config())
  with pytest.raises(ConfigError, match="config.train.epochs is missing|epochs"):
    workdir.load_config(tmp_path / "other")


def test_what_is_whole_is_said_nothing_of(tmp_path, capsys):
  workdir.write_config(tmp_path, make_config(), {})
  workdir.check(tmp_path, make_config())
  assert not capsys.readouterr().err


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
