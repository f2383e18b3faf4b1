"""Facts about a network that its tensors leave open must be given, in one of several ways, and are saved in files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

import lrat_jax
from lrat_jax import models
from lrat_jax.convert import __main__ as convert
from lrat_jax.convert import exchange, identity, robustbench
from lrat_jax.core import provenance
from lrat_jax.core.errors import WeightsError
from lrat_jax.training import checkpoints
from tests import torch_definitions as definitions

MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 1.0)


def _stored(name="cnn_4"):
  return {key: tensor.numpy() for key, tensor in definitions.trained(name).state_dict().items()}


def _as_in_torch(preprocessing, images):
  """Images [n, h, w, c], preprocessed by RobustBench's code, as [n, c, h, w]."""
  x = definitions.to_torch(images)
  if preprocessing == "per_image":
    std = x.std(dim=(1, 2, 3), keepdim=True)
    return (x - x.mean(dim=(1, 2, 3), keepdim=True)) / torch.maximum(std, torch.ones_like(std) / x[0].numel() ** 0.5)
  return 2.0 * x - 1.0 if preprocessing == "minus_one_to_one" else x


@pytest.mark.parametrize("preprocessing", ["none", "per_image", "minus_one_to_one"])
def test_preprocessing_that_is_said_gives_pytorchs_logits_and_stays_with_the_model(preprocessing, tmp_path):
  network, images = definitions.trained("cnn_4"), definitions.pictures()
  torch.save(network.state_dict(), tmp_path / "a.pt")
  with torch.no_grad():
    expected = network(_as_in_torch(preprocessing, images)).numpy()
  assert convert.main([str(tmp_path / "a.pt"), str(tmp_path / "b"), f"--preprocessing={preprocessing}"]) == 0
  for path, said in (("a.pt", {"preprocessing": preprocessing}), ("b", {})):
    model = lrat_jax.load_model(tmp_path / path, **said)
    assert model.module.preprocessing == preprocessing
    np.testing.assert_allclose(model.logits_fn(images), expected, atol=1e-4)
  exchange.save(tmp_path / "c.safetensors", model.module, model.variables)
  assert exchange.load(tmp_path / "c.safetensors").module == model.module
  digests = {exchange.read(tmp_path / "a.pt", preprocessing=said).content() for said in ("none", preprocessing)}
  assert len(digests) == (1 if preprocessing == "none" else 2)


def test_nothing_said_is_one_line_that_names_the_ways_to_say_it_and_robustbenchs_entries(tmp_path, capsys):
  torch.save(definitions.WideResNet(28, 1).state_dict(), tmp_path / "a.pt")
  assert convert.main([str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors")]) == 2
  line = capsys.readouterr().err
  assert line.count("\n") == 1 and not (tmp_path / "b.safetensors").exists()
  assert "a.pt: the file does not define the preprocessing of images in [0, 1] (--preprocessing=none or" in line
  with pytest.raises(WeightsError, match="does not define the preprocessing of images"):
    lrat_jax.load_model(tmp_path / "a.pt")
  ambiguous = exchange.torch_names.Recognised("", "wide_resnet_28_10", 10, 3, (8, 8), activation="relu")
  ways = robustbench.suggestions(ambiguous)
  assert "--preprocessing=none (Carmon2019Unlabeled," in ways
  assert "--preprocessing=minus_one_to_one (Hendrycks2019Using)" in ways and "(Rony2019Decoupling)" in ways


def test_an_activation_that_the_definition_leaves_open_is_asked_for():
  recognised = exchange.torch_names.Recognised("", "cnn_4", 7, 3, (8, 8), activation=None)
  known = identity.Preprocessing("none")
  with pytest.raises(WeightsError, match=r"does not define the activation \(--activation=relu or silu or"):
    identity.settle(recognised, known, {}, identity.Said())
  with pytest.raises(WeightsError, match=r"activation \(.*\) or the preprocessing of images"):
    identity.settle(recognised, None, {}, identity.Said())
  said = identity.settle(recognised, known, {}, identity.Said(activation="silu"))
  stored = identity.settle(recognised, known, {"activation": "silu"}, identity.Said())
  assert said.recognised.activation == stored.recognised.activation == "silu"
  fixed = identity.settle(recognised._replace(activation="relu"), known, {}, identity.Said(activation="silu"))
  assert fixed.recognised.activation == "silu"  # the user's argument overrides the definition


def test_of_several_networks_that_the_tensors_fit_one_is_said():
  first = exchange.torch_names.Recognised("", "cnn_4", 7, 3, (8, 8), activation="relu")
  both = first._replace(others=(first._replace(name="cnn_8"),))
  known = identity.Preprocessing("none")
  with pytest.raises(WeightsError, match=r"the network among .* \(--architecture=cnn_4 or cnn_8\)"):
    identity.settle(both, known, {}, identity.Said())
  for told, metadata in ((identity.Said(architecture="cnn_8"), {}), (identity.Said(), {"architecture": "cnn_8"})):
    assert identity.settle(both, known, metadata, told).recognised.name == "cnn_8"
  with pytest.raises(WeightsError, match="fit cnn_4 or cnn_8, not --architecture=resnet18"):
    identity.settle(both, known, {}, identity.Said(architecture="resnet18"))


@pytest.mark.parametrize(
  ("said", "message"),
  [
    (
      {"preprocessing": "zca"},
      r"preprocessing='zca' is unknown; choose from \['none', 'per_image', 'minus_one_to_one'\]",
    ),
    ({"preprocessing": "mean_std"}, "preprocessing='mean_std' is unknown"),
    ({"activation": "swish"}, r"activation='swish' is unknown; choose from \['relu', 'silu'"),
    ({"mean": (0.5,)}, "mean and std go together"),
    ({"mean": (0.5,), "std": (1.0,), "preprocessing": "none"}, "preprocessing='none' uses no mean and std"),
    ({"robustbench": "Ding2020MMA", "activation": "relu"}, "robustbench='Ding2020MMA' also defines activation"),
  ],
)
def test_a_wrong_word_is_one_line(said, message):
  with pytest.raises(WeightsError, match=message):
    exchange.from_tensors("a", _stored(), **said)


def test_files_from_before_preprocessing_had_a_name_load_as_they_did(tmp_path):
  metadata = {"format": "pt", "architecture": "cnn_4", "mean": json.dumps(MEAN), "std": json.dumps(STD)}
  safetensors.numpy.save_file(_stored(), tmp_path / "a.safetensors", metadata)
  module = exchange.load(tmp_path / "a.safetensors").module
  assert (module.preprocessing, module.mean, module.std, module.network.activation) == ("mean_std", MEAN, STD, "relu")
  safetensors.numpy.save_file(_stored(), tmp_path / "b.safetensors", metadata | {"preprocessing": "zca"})
  with pytest.raises(WeightsError, match="its metadata contain preprocessing='zca', which is unknown; choose from"):
    exchange.load(tmp_path / "b.safetensors")


@pytest.mark.parametrize("with_fields", [True, False])
def test_a_workdir_says_it_all(with_fields, tmp_path):
  """Also a workdir from before these fields existed, when there were only mean and std."""
  model = models.create("cnn_4", 7, activation="silu" if with_fields else "auto")
  variables = jax.tree.map(np.asarray, model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
  with checkpoints.Checkpoints(tmp_path / "checkpoints") as saved:
    saved.save(0, {"variables": variables, "ema": variables}, checkpoints.Progress(data={}, finished=True), None)
  fields = {"name": "cnn_4", "dtype": "float32", "mean": MEAN, "std": STD}
  fields |= {"activation": "silu", "preprocessing": "per_image"} if with_fields else {}
  config = {"name": "at", "train_attacks": {}, "model": fields}
  run = {"schema_version": provenance.SCHEMA_VERSION}
  (tmp_path / "config.json").write_text(json.dumps({"run": run, **config}))
  module = exchange.load(tmp_path).module
  assert (module.preprocessing, module.network.activation) == (
    ("per_image", "silu") if with_fields else ("mean_std", "relu")
  )
