"""Corruptions that are read from files: missing files and other splits are refused before a run."""

import pytest

from lrat_jax import data
from lrat_jax.config import default as config_lib
from lrat_jax.config import validate, validate_attacks
from lrat_jax.core.errors import ConfigError
from tests.data.test_corruptions import INDICES, LABELS, SHAPE, write


def _config(folder, split="test", **entry):
  config = config_lib.default("at", "digits,suite=pgd")
  config.data.corruptions, config.eval.split = str(folder), split
  with config.unlocked():
    config.eval.suite = {"it": {"name": "corruption", "kind": "fog", "severity": 2} | entry}
  return config


def _check(config):
  validate.check(config)
  validate.check_for_evaluation(config, SHAPE, 3)
  validate_attacks.check_corruptions(config, data.corrupted_for(config.data, LABELS, INDICES, SHAPE))


@pytest.mark.parametrize("kind", ["fog", "rain"])
def test_any_kind_that_has_a_file_serves(tmp_path, kind):
  write(tmp_path)
  _check(_config(tmp_path, kind=kind))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"kind": "snow"}, r"config.data.corruptions='.*' does not contain snow.npy; its kinds are \['fog', 'rain'\]"),
    ({"severity": 6}, r"config.eval.suite.it.severity=6 is outside \[1, 5\]"),
    ({"severity": 1.5}, r"config.eval.suite.it.severity=1.5 must be an integer"),
    ({"split": "validation"}, "config.eval.split='validation': config.data.corruptions is only for the test split"),
    ({"steps": 3}, "config.eval.suite.it.steps=3 is not an argument of 'corruption'"),
  ],
)
def test_what_cannot_be_read_is_refused(tmp_path, changes, message):
  write(tmp_path)
  with pytest.raises(ConfigError, match=message):
    _check(_config(tmp_path, **changes))


def test_without_files_a_kind_must_be_one_that_is_computed():
  with pytest.raises(ConfigError, match="config.eval.suite.it.kind='rain' is unknown; choose from"):
    validate.check(_config("", kind="rain"))
