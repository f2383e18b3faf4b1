"""Models from PyTorch and back: equal logits, identical bits, and all common wrappers of a state_dict."""

import copy
import re

import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from lrat_jax import models
from lrat_jax.convert import exchange, torch_names
from lrat_jax.core.errors import WeightsError
from tests import torch_definitions as definitions

# Images in [0, 1] are not normalised.
PLAIN = {"mean": (0.0,), "std": (1.0,)}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
_BUFFERS = {"mean": torch.tensor(MEAN).reshape(1, 3, 1, 1), "std": torch.tensor(STD).reshape(3)}


def _open(name):
  """The arguments needed for architectures whose definition takes the activation as an argument."""
  return {"activation": "silu"} if name.startswith(("dm_", "ra_")) else {}


def _rounding(name, network, images, logits):
  """The tolerance: 1e-4; for random bottlenecks, which amplify rounding, 4 times PyTorch's float32 error if larger."""
  if "50" not in name:
    return 1e-4
  exact = copy.deepcopy(network).double()(torch.from_numpy(images.transpose(0, 3, 1, 2)).double())
  return max(1e-4, 4 * np.abs(exact.detach().numpy() - logits).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", definitions.SMALL)
def test_logits_are_equal_from_either_kind_of_file(name, tmp_path):
  network, images = definitions.trained(name), definitions.pictures()
  torch.save(network.state_dict(), tmp_path / "a.pt")
  safetensors.torch.save_file(network.state_dict(), tmp_path / "a.safetensors")
  expected = definitions.logits(network, images)
  assert np.abs(expected).max() > 1 and np.ptp(expected, axis=0).min() > 0.1
  said = PLAIN | _open(name)
  first, second = (exchange.load(tmp_path / f"a.{kind}", **said) for kind in ("pt", "safetensors"))
  np.testing.assert_allclose(first.logits_fn(images), expected, rtol=0, atol=_rounding(name, network, images, expected))
  jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)
  assert exchange.read(tmp_path / "a.pt", **said).recognised.name == name


def _random_variables(model, images):
  """Random variables that do not come from PyTorch; none has its initial value."""
  generator = np.random.default_rng(1)

  def draw(path, leaf):
    if path[-1].key in ("scale", "var"):
      return generator.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    fan = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 10
    return generator.normal(0, (2 / fan) ** 0.5, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0), images))


@pytest.mark.parametrize("name", definitions.SMALL)
def test_a_model_of_ours_loads_strictly_in_pytorch_with_equal_logits(name, tmp_path):
  model, images = models.create(name, 7, mean=MEAN, std=STD), definitions.pictures()
  variables = _random_variables(model, images)
  exchange.save(tmp_path / "a.safetensors", model, variables)
  network = definitions.SMALL[name]()
  network.load_state_dict(safetensors.torch.load_file(tmp_path / "a.safetensors"), strict=True)
  ours = models.applied(model)(variables, images)
  theirs = definitions.logits(definitions.Normalised(network, MEAN, STD).eval(), images)
  largest = np.abs(ours).max()  # the deepest networks sum many blocks, so logits are large
  np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * max(1, largest / 20))
  assert 1 < largest < 500


@pytest.mark.parametrize("name", definitions.SMALL)
def test_there_and_back_is_the_same_to_the_bit(name, tmp_path):
  sent = {key: value for key, value in definitions.trained(name).state_dict().items() if "num_batches" not in key}
  torch.save(sent, tmp_path / "a.pth")
  model = exchange.load(tmp_path / "a.pth", mean=MEAN, std=STD, **_open(name))
  for destination in ("a.safetensors", "folder"):
    exchange.save(tmp_path / destination, model.module, model.variables)
    again = exchange.load(tmp_path / destination)
    jax.tree.map(np.testing.assert_array_equal, again.variables, model.variables)
    assert (again.module.mean, again.module.std) == (MEAN, STD)
  written = safetensors.torch.load_file(tmp_path / "a.safetensors")
  assert written.keys() == sent.keys() and all(torch.equal(written[key], sent[key]) for key in sent)


def test_the_activation_is_kept(tmp_path):
  model, images = models.create("cnn_4", 7, activation="silu", mean=MEAN, std=STD), definitions.pictures()
  variables = _random_variables(model, images)
  exchange.save(tmp_path / "a.safetensors", model, variables)
  assert exchange.load(tmp_path / "a.safetensors").module == model


def test_how_meansparse_was_made_is_left_out(tmp_path):
  tensors = definitions.trained("dm_wide_resnet_10_1_mean_sparse").state_dict()
  made = {name.replace("threshold", "batch_num"): torch.tensor(0.0) for name in tensors if name.endswith("threshold")}
  made |= {name.replace("batch_num", "flag_update_statistics"): torch.tensor(0) for name in made}
  torch.save(tensors | made, tmp_path / "a.pt")
  stored = exchange.read(tmp_path / "a.pt", activation="silu", **PLAIN)
  assert len(made) == 20 and not made.keys() & stored.tensors.keys()
  assert stored.build().module.network.mean_sparse


@pytest.mark.parametrize(
  "name",
  ["resnet18_4", "preact_resnet18_4", "dm_preact_resnet18_4", "imagenet_resnet18_4", "xcit_1_16_2_p4",
   "convnext_1-1_8-12_convstem", "vit_1_16_2_4"],
)  # fmt: skip
def test_meansparse_in_a_network_that_has_none_elsewhere_goes_out_and_comes_back(name, tmp_path):
  images = np.zeros((1, 16, 16, 3), np.float32)
  model = models.create(name, 7, mean_sparse=True, mean=MEAN, std=STD)
  variables = _random_variables(model, images)
  exchange.save(tmp_path / "a.safetensors", model, variables)
  written = safetensors.torch.load_file(tmp_path / "a.safetensors")
  assert len([key for key in written if key.startswith("mean_sparse.") and key.endswith(".threshold")]) > 0
  again = exchange.load(tmp_path / "a.safetensors")
  assert again.module == model
  jax.tree.map(np.testing.assert_array_equal, again.variables, variables)


def test_names_of_other_code_become_ours(tmp_path):
  name = "robust_wide_resnet_16_1x20_2x24_1x12"
  tensors = definitions.trained(name).state_dict()
  rename = lambda key: re.sub("^bn1", "norm1", key).replace("convShortcut", "shortcut.0")
  theirs = {rename(key): tensor for key, tensor in tensors.items()}
  torch.save(_behind("module.", theirs), tmp_path / "a.pt")
  torch.save(tensors, tmp_path / "b.pt")
  with pytest.raises(WeightsError, match="does not define the activation"):
    exchange.read(tmp_path / "a.pt", **PLAIN)
  found, expected = (
    exchange.read(tmp_path / "a.pt", activation="silu", **PLAIN),
    exchange.read(tmp_path / "b.pt", **PLAIN),
  )
  assert found.recognised.name == name and found.tensors.keys() == expected.tensors.keys()
  assert (found.recognised.activation, expected.recognised.activation) == ("silu", "relu")


@pytest.mark.parametrize("name", definitions.SMALL)
def test_every_variable_has_one_name(name):
  model = models.create(name, 7)
  shapes = jax.eval_shape(model.init, jax.random.key(0), definitions.pictures())
  named = torch_names.entries(model.network, shapes)
  assert len({entry.path for entry in named}) == len({entry.name for entry in named}) == len(named)
  assert len(named) == len(jax.tree.leaves(shapes))


def _behind(prefix, tensors):
  return {prefix + name: tensor for name, tensor in tensors.items()}


_NEW_NAMES = {"new_mean": _BUFFERS["mean"].reshape(3, 1, 1), "new_std": _BUFFERS["std"].reshape(3, 1, 1)}
_NEW = {f"normalizer.{name}": tensor for name, tensor in _NEW_NAMES.items()}
WRAPPERS = {
  "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{}]}},
  "model_state_dict": lambda tensors: {"model_state_dict": tensors, "loss": 0.5},
  "net": lambda tensors: {"net": tensors, "acc": 90.5},
  "module": lambda tensors: _behind("module.", tensors),
  "model of a module": lambda tensors: {"state_dict": _behind("module.model.", tensors)},
  "average": lambda tensors: {"n_averaged": torch.tensor(5)} | _behind("module.", tensors),
  "list": lambda tensors: {"state_dict": [tensors], "epoch": 3},
  "nested": lambda tensors: {"run": {"net": {"weights": tensors}, "best": True}, "epoch": torch.tensor(7)},
  "NumPy scalars": lambda tensors: {
    "net": tensors,
    "acc": np.float64(90.5),
    "epoch": np.int64(3),
    "lr": np.float32(0.1),
  },
  "robustness": lambda tensors: {
    "model": _behind("module.model.", tensors)
    | _behind("module.attacker.model.", tensors)
    | _behind("module.", _NEW)
    | _behind("module.attacker.normalize.", _NEW_NAMES),
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2, 2)}}, "param_groups": [{}]},
    "epoch": 150,
  },
  "double": lambda tensors: {name: tensor.double() for name, tensor in tensors.items()},
  "Sequential": lambda tensors: _behind("0.", _BUFFERS) | _behind("1.", tensors),
  "Sequential in parallel": lambda tensors: _behind("module.0.", _BUFFERS) | _behind("module.1.", tensors),
  "RobustBench": lambda tensors: {"mu": _BUFFERS["mean"], "sigma": _BUFFERS["std"]} | tensors,
  "RobustBench's ImageNet": lambda tensors: _behind("normalize.", _BUFFERS) | _behind("model.", tensors),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ["preact_resnet18_4", "wide_resnet_10_1", "cnn_4"])
def test_wrappers_are_seen_through(name, wrapper, tmp_path):
  tensors = definitions.trained(name).state_dict()
  torch.save(WRAPPERS[wrapper](tensors), tmp_path / "a.pt")
  normalises = any(word in wrapper for word in ("Sequential", "RobustBench", "robustness"))
  stored = exchange.read(tmp_path / "a.pt", **({} if normalises else PLAIN))
  assert stored.recognised.name == name and stored.recognised.num_classes == 7 and stored.recognised.channels == 3
  kept = {key: tensor for key, tensor in tensors.items() if "num_batches" not in key}
  assert stored.tensors.keys() == kept.keys()
  assert all(np.array_equal(stored.tensors[key], tensor.numpy()) for key, tensor in kept.items())
  assert ("from its own tensors" if normalises else "mean 0 and std 1, as given") in stored.summary()
  np.testing.assert_allclose(stored.preprocessing.mean, MEAN if normalises else (0.0,), atol=1e-7)
  np.testing.assert_allclose(stored.preprocessing.std, STD if normalises else (1.0,), atol=1e-7)


def test_a_normalisation_in_front_is_part_of_the_model(tmp_path):
  network, images = definitions.trained("cnn_4"), definitions.pictures()
  normalised = definitions.Normalised(network, MEAN, STD, ("mu", "sigma")).eval()
  torch.save(normalised.state_dict(), tmp_path / "a.pt")
  found = exchange.load(tmp_path / "a.pt").logits_fn(images)
  np.testing.assert_allclose(found, definitions.logits(normalised, images), atol=1e-4)


def test_unused_blocks_are_left_out_and_said(tmp_path):
  network = definitions.WideResNet(10, 1, 7, sub_block1=True)
  torch.save(_behind("module.", network.state_dict()), tmp_path / "a.pt")
  stored = exchange.read(tmp_path / "a.pt", **PLAIN)
  assert "Left out: 12 tensors of sub_block1" in stored.summary()
  assert stored.build().module.network.depth == 10


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 11), (2, 28)])
def test_channels_and_image_sizes_are_found_out(channels, size, tmp_path):
  images = np.random.default_rng(1).uniform(size=(4, size, size, channels)).astype(np.float32)
  network = definitions.spread(definitions.cnn(6, 3, channels, size), images)
  torch.save(network.state_dict(), tmp_path / "a.pt")
  model = exchange.load(tmp_path / "a.pt", **PLAIN)
  np.testing.assert_allclose(model.logits_fn(images), definitions.logits(network, images), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_halves_become_float32(dtype, suffix, tmp_path):
  tensors = {name: tensor.to(dtype) for name, tensor in definitions.trained("cnn_4").state_dict().items()}
  path = tmp_path / f"a.{suffix}"
  torch.save(tensors, path) if suffix == "pt" else safetensors.torch.save_file(tensors, path)
  stored = exchange.read(path, **PLAIN)
  assert {array.dtype for array in stored.tensors.values()} == {np.dtype("float32")}
  np.testing.assert_array_equal(stored.tensors["0.weight"], tensors["0.weight"].float().numpy())
  stored.build()


def test_an_average_of_weights_beside_the_raw_ones_is_chosen_by_key(tmp_path):
  tensors = definitions.trained("cnn_4").state_dict()
  average = {name: tensor + 1 for name, tensor in tensors.items()}
  torch.save({"state_dict": tensors, "averages": {"ema": average}, "epoch": 3}, tmp_path / "a.pth.tar")
  with pytest.raises(WeightsError, match=r"choose one with --key from \['averages.ema', 'state_dict'\]"):
    exchange.read(tmp_path / "a.pth.tar", **PLAIN)
  stored = exchange.read(tmp_path / "a.pth.tar", key="averages.ema", **PLAIN)
  np.testing.assert_array_equal(stored.tensors["0.bias"], average["0.bias"].numpy())
