"""Weight files that are damaged, foreign or malicious: a one-line error each, and no code in them is run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrat_jax.convert import exchange, torch_names
from lrat_jax.convert.exchange import WeightsError
from tests import torch_definitions as definitions

ROOT = Path(__file__).parent.parent.parent


def _tensors(name="cnn_4"):
  return dict(definitions.trained(name).state_dict())


def _fail(path, message, **options):
  """Loading must fail with a one-line error that names the file."""
  plain = {"mean": (0.0,), "std": (1.0,)}
  with pytest.raises(WeightsError, match=message) as raised:
    exchange.load(path, **plain | options)
  assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_one_of_several_state_dicts_is_chosen(tmp_path):
  tensors, path = _tensors(), tmp_path / "a.pt"
  torch.save({"last": tensors, "best": {name: tensor + 1 for name, tensor in tensors.items()}}, path)
  _fail(path, r"several state_dicts; choose one with --key from \['best', 'last'\]")
  _fail(path, r"no state_dict under --key='first'; choose from \['best', 'last'\]", key="first")
  for key, more in (("last", 0), ("best", 1)):
    np.testing.assert_array_equal(
      exchange.read(path, key=key, mean=(0,), std=(1,)).tensors["0.bias"], tensors["0.bias"].numpy() + more
    )
  safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
  _fail(tmp_path / "a.safetensors", "--key='last' is only for .pt files", key="last")


class _Runs:
  """Its pickle runs a command that creates a file when it is loaded."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", [lambda evil, _: evil, lambda evil, tensors: {"net": tensors, "acc": evil}])
def test_a_pickle_that_would_run_code_is_refused(place, tmp_path):
  torch.save(place(_Runs(tmp_path / "ran"), _tensors()), tmp_path / "a.pt")
  _fail(tmp_path / "a.pt", "contains a Python object, posix.system, which is not loaded because it could run code")
  assert {path.name for path in tmp_path.iterdir()} == {"a.pt"}
  torch.load(tmp_path / "a.pt", weights_only=False)
  assert (tmp_path / "ran").exists()  # so the code refused above would have run


def test_a_whole_module_in_a_file_is_refused_with_what_to_do(tmp_path):
  torch.save(definitions.trained("cnn_4"), tmp_path / "a.pt")
  _fail(tmp_path / "a.pt", r"torch.nn.modules.*; if you trust the file, .* torch.save\(model.state_dict\(\), NEW\)")


def _without(tensors, *names):
  return {name: tensor for name, tensor in tensors.items() if name not in names}


def _renamed(tensors, before, after):
  return {name.replace(before, after): tensor for name, tensor in tensors.items()}


BAD_FILES = {
  "left over: extra.weight": lambda tensors: tensors | {"extra.weight": torch.ones(2)},
  "missing: bn1.bias, fc.bias": lambda tensors: _without(tensors, "bn1.bias", "fc.bias"),
  "missing: .*convShortcut.*; left over: .*downsample": lambda tensors: _renamed(tensors, "convShortcut", "downsample"),
  r"missing: block3.layer.0.bn1.bias, .* and 6 more": lambda tensors: {
    name: tensor for name, tensor in tensors.items() if "block3" not in name or "conv2" in name
  },
  r"of another shape: fc.bias \[8\] instead of \[7\]": lambda tensors: tensors | {"fc.bias": torch.ones(8)},
  r"not float32: bn1.bias int64": lambda tensors: tensors | {"bn1.bias": torch.ones(64, dtype=torch.int64)},
  r"fc.weight is missing": lambda tensors: _without(tensors, "fc.weight"),
  r"conv1.weight is missing": lambda tensors: _without(tensors, "conv1.weight"),
  r"fc.weight has the shape \[7\]": lambda tensors: tensors | {"fc.weight": torch.ones(7)},
  r"'wide_resnet_10_0' is not a model": lambda tensors: (
    tensors | {"block1.layer.0.conv1.weight": torch.ones(4, 16, 3, 3)}
  ),
  r"a, b, c, d and 2 more: not the tensors of a known network; known": lambda _: dict.fromkeys("abcdef", torch.ones(1)),
  r"contains no state_dict, only \['epoch', 'lr'\]": lambda _: {"epoch": 3, "lr": 0.1},
  "contains no state_dict, only list": lambda tensors: [tensors, tensors],
  r"conv1.weight is not a plain tensor \(torch.float32, torch.sparse_coo\)": lambda tensors: (
    tensors | {"conv1.weight": tensors["conv1.weight"].to_sparse()}
  ),
  "left over: mean, std": lambda tensors: tensors | {"mean": torch.ones(2), "std": torch.ones(2)},
  "left over: a.mean, b.mean, std": lambda tensors: tensors | dict.fromkeys(("a.mean", "b.mean", "std"), torch.ones(3)),
  "every std above 0": lambda tensors: tensors | {"mu": torch.ones(3), "sigma": torch.zeros(3)},
}


@pytest.mark.filterwarnings("ignore:.*TypedStorage", "ignore:.*[Ss]parse")
@pytest.mark.parametrize("message", BAD_FILES)
def test_what_does_not_fit_is_one_line(message, tmp_path):
  torch.save(BAD_FILES[message](_tensors("wide_resnet_10_1")), tmp_path / "a.pt")
  own = {"mean": None, "std": None} if "every std" in message else {}
  _fail(tmp_path / "a.pt", message, **own)


_NAMES = st.sampled_from(
  ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "linear.weight", "block1.layer.0.conv1.weight", "fc.weight",
   "0.weight", "9.weight", "11.weight", "1.11.weight", "module.conv1.weight", "module.layer1.0.conv1.weight"]
)  # fmt: skip


@pytest.mark.slow
@given(st.dictionaries(_NAMES | st.text(), st.lists(st.integers(0, 99), max_size=5).map(tuple)))
def test_any_names_and_shapes_are_a_network_or_refused(shapes):
  try:
    found = torch_names.recognise(shapes)
  except torch_names.UnknownNetworkError:
    return
  assert found.num_classes > 0 and found.channels > 0 and min(found.image_size) > 0


def test_a_tensors_name_with_line_ends_makes_no_lines(tmp_path):
  torch.save(_tensors() | {"a\nb\rc": torch.ones(1)}, tmp_path / "a.pt")
  _fail(tmp_path / "a.pt", "left over: a b c")


@pytest.mark.parametrize("name", ["resnet18_4", "preact_resnet18_4"])
def test_a_residual_network_of_another_depth_is_refused(name, tmp_path):
  tensors = _tensors(name)
  third = {key.replace("layer1.1.", "layer1.2."): value for key, value in tensors.items() if "layer1.1." in key}
  torch.save(tensors | third, tmp_path / "a.pt")
  _fail(tmp_path / "a.pt", r"stages of \[3, 2, 2, 2\] blocks of 2 convolutions are not a ResNet known here")


@pytest.mark.parametrize(
  ("mean", "std", "message"),
  [((0.1, 0.2), (1.0, 1.0), "has 2 channels, but the network has 3"), ((0.1,), None, "mean and std go together")],
)
def test_a_normalisation_that_does_not_fit_is_one_line(mean, std, message, tmp_path):
  torch.save(_tensors(), tmp_path / "a.pt")
  with pytest.raises(WeightsError, match=message):
    exchange.load(tmp_path / "a.pt", mean=mean, std=std)


@pytest.mark.parametrize("mean", ["0.5, 0.5]", '"x"', "[]", "{}", "3", "[[1]]"])
def test_metadata_that_are_no_numbers_are_one_line(mean, tmp_path):
  safetensors.torch.save_file(_tensors(), tmp_path / "a.safetensors", {"mean": mean, "std": "[1.0]"})
  _fail(tmp_path / "a.safetensors", "which is not a list of numbers", mean=None, std=None)


@pytest.mark.parametrize(
  ("content", "name", "message"),
  [
    (b"no such thing", "a.pt", "is not a complete PyTorch file"),
    (b"", "a.pth", "is not a complete PyTorch file"),
    (b"no such thing", "a.safetensors", "cannot be read: Error while deserializing header"),
    (b"", "a.safetensors", "cannot be read"),
    (b"{}", "a.json", "must be a directory or have one of the suffixes .pt, .pth, .th, .tar, .ckpt, .safetensors"),
    (None, "none.pt", "cannot be read: No such file or directory"),
    (None, "none.safetensors", "cannot be read: No such file or directory"),
    (None, "", "model.safetensors cannot be read"),
  ],
)
def test_damaged_and_foreign_files_are_one_line(content, name, message, tmp_path):
  if content is not None:
    (tmp_path / name).write_bytes(content)
  _fail(tmp_path / name, message)


@pytest.mark.parametrize("size", [10, 400, -1])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_cut_files_are_one_line(suffix, size, tmp_path):
  path = tmp_path / f"a.{suffix}"
  torch.save(_tensors(), path) if suffix == "pt" else safetensors.torch.save_file(_tensors(), path)
  path.write_bytes(path.read_bytes()[:size])
  _fail(path, "cannot be read|is not a complete PyTorch file")


def test_a_directory_needs_its_description(tmp_path):
  safetensors.torch.save_file(_tensors(), tmp_path / "model.safetensors")
  with pytest.raises(WeightsError, match="config.json is damaged"):
    exchange.load(tmp_path)
  (tmp_path / "config.json").write_text('{"mean": [0.5], "std": [0.25], "num_labels": 7}')
  assert exchange.load(tmp_path).module.std == (0.25,)


def _in_parts(folder, name="model", count=3):
  tensors = {key: tensor.clone() for key, tensor in _tensors().items()}
  for part in range(1, count + 1):
    shard = {key: tensors[key] for key in sorted(tensors)[part - 1 :: count]}
    safetensors.torch.save_file(
      shard, folder / f"{name}-{part:05}-of-{count:05}.safetensors", {"mean": "[0.5]", "std": "[0.25]"}
    )


def test_any_part_of_a_model_stands_for_all_of_it(tmp_path):
  _in_parts(tmp_path, "a[b]-1")
  safetensors.torch.save_file(_tensors(), tmp_path / "whole.safetensors")
  whole = exchange.read(str(tmp_path / "whole.safetensors"), mean=(0.5,), std=(0.25,))
  for part in (1, 3):
    assert exchange.read(str(tmp_path / f"a[b]-1-{part:05}-of-00003.safetensors")).content() == whole.content()
  (tmp_path / "a[b]-1-00002-of-00003.safetensors").unlink()
  _fail(tmp_path / "a[b]-1-00001-of-00003.safetensors", "known network|do not fit|missing")


def test_a_directory_may_hold_a_model_in_parts(tmp_path):
  _in_parts(tmp_path)
  (tmp_path / "config.json").write_text('{"mean": [0.5], "std": [0.25]}')
  assert exchange.load(tmp_path).module.std == (0.25,)


def test_whole_models_that_are_named_as_parts_are_read_alone(tmp_path):
  for number in (1, 2):
    safetensors.torch.save_file(_tensors(), tmp_path / f"seed-{number}-of-2.safetensors")
  assert len(exchange.read(str(tmp_path / "seed-2-of-2.safetensors"), mean=(0.0,), std=(1.0,)).tensors) == len(
    _tensors()
  )


def test_pytorch_is_needed_for_its_own_files_alone(tmp_path):
  """If it is not installed, or too old to be safe, the error is one line."""
  safetensors.torch.save_file(_tensors(), tmp_path / "a.safetensors")
  torch.save(_tensors(), tmp_path / "a.pt")
  code = """
import sys, types
class Missing:
  def find_spec(self, name, *_):
    if name.partition(".")[0] == "torch":
      raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from lrat_jax import main
from lrat_jax.convert import __main__ as convert
convert_one = lambda name: convert.main([name, "b.safetensors", "--mean=0", "--std=1"])
codes = [convert_one(name) for name in ("a.safetensors", "a.pt", "none.pt")]
sys.modules["torch"] = types.SimpleNamespace(__version__="2.5.1+cpu")
print(codes + [convert_one("a.pt")])
"""
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert ended.stdout.endswith("[0, 2, 2, 2]\n"), ended.stderr
  first, missing, second = ended.stderr.splitlines()[-3:]
  assert missing.startswith("error: none.pt cannot be read: No such file")
  assert first.startswith("error: a.pt can be read only with PyTorch, which is not installed; install torch")
  assert second.startswith("error: a.pt is read only with PyTorch 2.6 or newer")
