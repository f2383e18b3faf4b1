"""Configurations of earlier versions, with fields missing: which fields are filled in, and which cannot be."""

import copy

import pytest

from lrat_jax.config import default as config_lib
from lrat_jax.config import earlier
from tests.helpers import make_config


def test_a_whole_configuration_is_left_as_it_is():
  for preset in config_lib.PRESETS:
    whole = config_lib.default("any", preset).to_dict()
    assert earlier.completed(whole) == (whole, [])


def test_what_differs_between_data_sets_and_what_is_the_users_own_is_not_filled_in():
  fields, absent = earlier.completed({})
  assert "train" in fields and "config.train.variants" in absent and "config.awp.gamma" in absent
  for path in ("name", "data.source", "data.batch_size", "model.name", "model.mean", "optimizer.learning_rate",
               "optimizer.schedule", "optimizer.warmup", "train.epochs", "train.epsilon_ramp_fraction", "train_attacks",
               "validation_attack", "eval.suite"):  # fmt: skip
    group, _, name = path.rpartition(".")
    assert name not in (fields[group] if group else fields) and f"config.{path}" not in absent


def test_what_is_there_is_kept_and_the_argument_is_not_changed():
  given = make_config(train__label_smoothing=0.2, beta=3.0).to_dict()
  del given["train"]["ema_decay"], given["local_weights"]
  given |= {"unknown": 1, "awp": 7}
  before = copy.deepcopy(given)
  fields, absent = earlier.completed(given)
  assert given == before and (fields["beta"], fields["unknown"], fields["awp"]) == (3.0, 1, 7)
  assert (fields["train"]["label_smoothing"], fields["train"]["ema_decay"]) == (0.2, 0.0)
  assert fields["local_weights"] == config_lib.default("any").local_weights.to_dict()
  assert absent[-1] == "config.train.ema_decay" and len(absent) == len(fields["local_weights"]) + 1


@pytest.mark.parametrize(
  "path",
  [
    "data.extra.source",
    "data.image_size",
    "train.init_from",
    "optimizer.decay",
    "model.preprocessing",
    "eval.image_list",
  ],
)
def test_a_field_that_was_added_can_be_filled_in(path):
  whole = make_config().to_dict()
  *groups, name = path.split(".")
  group = whole
  for key in groups:
    group = group[key]
  value = group.pop(name)
  filled, absent = earlier.completed(whole)
  for key in path.split("."):
    filled = filled[key]
  assert filled == value and absent == [f"config.{path}"]
