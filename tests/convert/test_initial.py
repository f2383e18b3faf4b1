"""Fine-tuning: the sources of initial weights, what is refused, and that the source is read only once."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch

from lrat_jax import main, models
from lrat_jax.convert import exchange, initial
from lrat_jax.core.errors import ConfigError
from lrat_jax.training.step import leaf_names
from tests import programs
from tests.helpers import make_config, make_experiment

MEAN, STD = (0.305,), (0.376,)
HEAD = {"params/network/Dense_1/kernel", "params/network/Dense_1/bias"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """A folder with a network of 4 classes as "a.safetensors", as "hub", and as "a.pt", which lacks the preprocessing."""
  folder = tmp_path_factory.mktemp("stored")
  model = models.create("cnn_4", 4, mean=MEAN, std=STD)
  variables = model.init(jax.random.key(7), jnp.zeros((1, 8, 8, 1)))
  for name in ("a.safetensors", "hub"):
    exchange.save(folder / name, model, variables)
  torch.save(safetensors.torch.load_file(folder / "a.safetensors"), folder / "a.pt")
  return folder, leaf_names(variables)


def _config(source, **fields):
  return make_config(**{"model__name": "cnn_4", "train__init_from": str(source)} | fields)


def _read(source, num_classes=4, **fields):
  return initial.read(_config(source, **fields), num_classes, (8, 8, 1))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "hub"])
def test_a_run_begins_with_a_files_weights(stored, name):
  folder, expected = stored
  found = _read(folder / name)
  assert set(found.arrays) == set(expected)
  config = _config(folder / name, train__ema_decay=0.995)
  state = make_experiment(config).initial_state(found.arrays)
  for tree in (state.variables, state.ema):
    for leaf, array in leaf_names(tree).items():
      np.testing.assert_array_equal(array, expected[leaf])
  assert found.about["source"] == str(folder / name) and found.about["head"] == "loaded"
  assert found.about["content"] == _read(folder / "a.safetensors").about["content"]


def test_another_runs_best_checkpoint_serves_too(finished):
  found = _read(finished, num_classes=10)
  step, state = exchange.best_checkpoint(finished)
  for leaf, array in leaf_names(state["variables"]).items():
    np.testing.assert_array_equal(found.arrays[leaf], array)
  assert found.about["step"] == step and found.about["name"] == "lrat_irat_digits"


def test_the_last_layer_begins_anew_where_that_is_asked_for(stored):
  folder, expected = stored
  for classes in (4, 10):
    found = _read(folder / "a.safetensors", classes, train__init_head="new")
    assert set(found.arrays) == set(expected) - HEAD and found.about["head"] == "new"
  config = _config(folder / "a.safetensors", train__init_head="new")
  fresh, tuned = (leaf_names(make_experiment(config).initial_state(a).variables) for a in ({}, found.arrays))
  for leaf in expected:
    np.testing.assert_array_equal(tuned[leaf], fresh[leaf] if leaf in HEAD else expected[leaf])


@pytest.mark.parametrize(
  ("name", "classes", "fields", "message"),
  [
    ("a.safetensors", 10, {}, "config.train.init_head='loaded': .*a.safetensors has 4 classes, but the data have 10"),
    (
      "a.safetensors",
      4,
      {"model__name": "cnn_8"},
      "contains the network cnn_4 with activation='relu', but config.model has name='cnn_8'",
    ),
    ("a.safetensors", 4, {"model__mean": (0.5,)}, r"has the mean \(0.305,\), but config.model.mean is \(0.5,\)"),
    (
      "a.safetensors",
      4,
      {"model__preprocessing": "per_image"},
      "has preprocessing='mean_std', but config.model has 'per_image'",
    ),
    (
      "a.safetensors",
      4,
      {"model__activation": "silu"},
      "the network cnn_4 with activation='relu', .* and activation='silu'",
    ),
    ("a.safetensors", 4, {"model__name": "tests.user_functions:linear"}, "contains the network cnn_4 with"),
    ("none.pt", 4, {}, "config.train.init_from='.*none.pt': .*none.pt cannot be read"),
    ("n" * 300, 4, {}, "config.train.init_from='.*nnn': File name too long"),
    ("none", 4, {}, "config.train.init_from='.*none': .*none must be a directory or have one of the suffixes .pt"),
  ],
)
def test_what_does_not_fit_is_refused_in_one_line(stored, name, classes, fields, message):
  with pytest.raises(ConfigError, match=message) as error:
    _read(stored[0] / name, classes, **fields)
  assert "\n" not in str(error.value)


def test_a_run_of_another_network_is_refused(finished):
  with pytest.raises(ConfigError, match=r"has model.name='cnn_4', but this run has 'cnn_8'"):
    _read(finished, 10, model__name="cnn_8")
  with pytest.raises(ConfigError, match=r"has model.mean=\[0.305\], but this run has \(0.5,\)"):
    _read(finished, 10, model__mean=(0.5,))
  config = _config(finished)
  with pytest.raises(ConfigError, match=r"params/network/.*kernel has the shape .* there, but .* in this run"):
    initial.read(config, 10, (8, 8, 3))


@pytest.mark.slow
def test_the_weights_are_read_once_and_results_say_which_they_were(finished, tmp_path, capsys):
  """With a learning rate of 0, results must equal the source's, although the source is deleted before evaluation."""
  source, workdir = tmp_path / "source", tmp_path / "run"
  shutil.copytree(finished, source)
  arguments = [*programs.RUN, f"--workdir={workdir}", f"--config.train.init_from={source}", "--config.train.epochs=1"]
  arguments += ["--config.optimizer.learning_rate=0.0", "--mode=train"]
  assert main.main(arguments) == 0
  shutil.rmtree(source)
  assert main.main(arguments[:-1]) == 0
  capsys.readouterr()
  results, expected = (json.loads((folder / "results.json").read_text()) for folder in (workdir, finished))
  assert results["clean"] == expected["clean"] and results["robust"] == expected["robust"]
  assert results["init_from"]["source"] == str(source) and results["init_from"]["step"] == expected["step"]
  assert json.loads((workdir / "config.json").read_text())["run"]["init_from"] == results["init_from"]
  assert main.main([*arguments[:1], "--config.train.init_from=nothing.pt", f"--workdir={tmp_path}/other"]) == 2
  assert "config.train.init_from='nothing.pt'" in capsys.readouterr().err and not (tmp_path / "other").exists()
