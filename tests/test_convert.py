"""Models from PyTorch and back: equal logits, equal bits, every wrapper that people have, and nothing that runs code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from lrat_jax import convert, evaluate, exchange, main, models
from lrat_jax.models import torch_names
from tests import torch_definitions as definitions
from tests.helpers import SMALL

ROOT = Path(__file__).parent.parent
# By our names: seven classes, three channels, images of 8x8.
NETWORKS = {
  "resnet18_4": lambda: definitions.ResNet18(4, 7),
  "preact_resnet18_4": lambda: definitions.PreActResNet18(4, 7),
  "wide_resnet_10_1": lambda: definitions.WideResNet(10, 1, 7),
  "wide_resnet_16_2": lambda: definitions.WideResNet(16, 2, 7),
  "cnn_4": lambda: definitions.cnn(4, 7, 3, 8),
}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
CNN_ONLY = ["cnn_4"]


@pytest.fixture(scope="module")
def pictures():
  """float32 [16, 8, 8, 3] in [0, 1]."""
  return np.random.default_rng(0).uniform(size=(16, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def networks(pictures):
  """The networks of NETWORKS in PyTorch, in evaluation mode, with weights as training leaves them."""
  return {name: definitions.spread(make(), pictures) for name, make in NETWORKS.items()}


def _logits(network, images):
  with torch.no_grad():
    return network(definitions.to_torch(images)).numpy()


def _fail(capsys, *arguments):
  """The one line that a command ends in, whose exit code is 2."""
  assert convert.main([str(argument) for argument in arguments]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1, error
  return error


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_equal_from_either_kind_of_file(name, networks, pictures, tmp_path):
  expected = _logits(networks[name], pictures)
  torch.save(networks[name].state_dict(), tmp_path / "a.pt")
  safetensors.torch.save_file(networks[name].state_dict(), tmp_path / "a.safetensors")
  assert np.abs(expected).max() > 1
  first, second = exchange.load(tmp_path / "a.pt"), exchange.load(tmp_path / "a.safetensors")
  np.testing.assert_allclose(first.logits_fn(pictures), expected, atol=1e-4)
  jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)
  assert exchange.read(tmp_path / "a.pt").recognised.name == name


@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_of_ours_loads_strictly_in_pytorch_with_equal_logits(name, networks, pictures, tmp_path):
  """On weights that PyTorch never saw, so that no error of one direction hides behind the other's."""
  model = models.create(name, 7)
  variables = jax.jit(model.init)(jax.random.key(0), pictures)
  leaves, tree = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  move = lambda key, leaf: leaf + 0.2 * jax.random.uniform(key, leaf.shape)
  variables = jax.tree.unflatten(tree, [move(key, leaf) for key, leaf in zip(keys, leaves, strict=True)])
  exchange.save(tmp_path / "a.safetensors", model, variables)
  network = NETWORKS[name]().eval()
  network.load_state_dict(safetensors.torch.load_file(tmp_path / "a.safetensors"), strict=True)
  ours = evaluate.apply_function(model)(variables, pictures)
  np.testing.assert_allclose(_logits(network, pictures), ours, atol=1e-4 * float(abs(ours).max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back_is_the_same_to_the_bit(name, networks, tmp_path):
  torch.save(networks[name].state_dict(), tmp_path / "a.pth")
  model = exchange.load(tmp_path / "a.pth")
  for destination in ("a.safetensors", "folder"):
    exchange.save(tmp_path / destination, model.module, model.variables)
    again = exchange.load(tmp_path / destination)
    jax.tree.map(np.testing.assert_array_equal, again.variables, model.variables)
  written = safetensors.torch.load_file(tmp_path / "a.safetensors")
  sent = {key: value for key, value in networks[name].state_dict().items() if "num_batches" not in key}
  assert written.keys() == sent.keys() and all(torch.equal(written[key], sent[key]) for key in sent)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_variable_has_one_name(name):
  model = models.create(name, 7)
  shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
  named = torch_names.entries(model.network, shapes)
  assert len({entry.path for entry in named}) == len({entry.name for entry in named}) == len(named)
  assert len(named) == len(jax.tree.leaves(shapes))


def _behind(prefix, tensors):
  return {prefix + name: tensor for name, tensor in tensors.items()}


_BUFFERS = {"mean": torch.tensor(MEAN).reshape(1, 3, 1, 1), "std": torch.tensor(STD).reshape(3)}
WRAPPERS = {
  "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{}]}},
  "model_state_dict": lambda tensors: {"model_state_dict": tensors, "loss": 0.5},
  "net": lambda tensors: {"net": tensors, "acc": 90.5},
  "module": lambda tensors: _behind("module.", tensors),
  "model of a module": lambda tensors: {"state_dict": _behind("module.model.", tensors)},
  "average": lambda tensors: {"n_averaged": torch.tensor(5)} | _behind("module.", tensors),
  "double": lambda tensors: {name: tensor.double() for name, tensor in tensors.items()},
  "Sequential": lambda tensors: _behind("0.", _BUFFERS) | _behind("1.", tensors),
  "Sequential in parallel": lambda tensors: _behind("module.0.", _BUFFERS) | _behind("module.1.", tensors),
  "RobustBench": lambda tensors: {"mu": _BUFFERS["mean"], "sigma": _BUFFERS["std"]} | tensors,
  "RobustBench's ImageNet": lambda tensors: _behind("normalize.", _BUFFERS) | _behind("model.", tensors),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ["wide_resnet_10_1", "cnn_4"])
def test_wrappers_are_seen_through(name, wrapper, networks, pictures, tmp_path):
  torch.save(WRAPPERS[wrapper](networks[name].state_dict()), tmp_path / "a.pt")
  stored = exchange.read(tmp_path / "a.pt")
  assert stored.recognised.name == name and stored.recognised.num_classes == 7 and stored.recognised.channels == 3
  normalises = "Sequential" in wrapper or "RobustBench" in wrapper
  assert ("from its own tensors" in stored.summary()) == normalises
  assert ("No mean and std" in stored.summary()) != normalises
  expected = definitions.Normalised(networks[name], *(MEAN, STD) if normalises else ((0.0,), (1.0,))).eval()
  if name in CNN_ONLY:  # the rest compiles slowly, and differs in nothing
    np.testing.assert_allclose(stored.build().logits_fn(pictures), _logits(expected, pictures), atol=1e-4)
  for key, tensor in networks[name].state_dict().items():
    assert "num_batches" in key or np.array_equal(stored.tensors[key], tensor.numpy())


def test_unused_blocks_are_left_out_and_said(pictures, tmp_path):
  network = definitions.spread(definitions.WideResNet(10, 1, 7, sub_block1=True), pictures)
  torch.save(_behind("module.", network.state_dict()), tmp_path / "a.pt")
  stored = exchange.read(tmp_path / "a.pt")
  assert "Left out: 12 tensors of sub_block1" in stored.summary()
  assert stored.build().module.network.depth == 10


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 11), (2, 28)])
def test_channels_and_image_sizes_are_found_out(channels, size, tmp_path):
  images = np.random.default_rng(1).uniform(size=(4, size, size, channels)).astype(np.float32)
  network = definitions.spread(definitions.cnn(6, 3, channels, size), images)
  torch.save(network.state_dict(), tmp_path / "a.pt")
  model = exchange.load(tmp_path / "a.pt")
  np.testing.assert_allclose(model.logits_fn(images), _logits(network, images), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_halves_become_float32(dtype, suffix, networks, tmp_path):
  tensors = {name: tensor.to(dtype) for name, tensor in networks["cnn_4"].state_dict().items()}
  path = tmp_path / f"a.{suffix}"
  torch.save(tensors, path) if suffix == "pt" else safetensors.torch.save_file(tensors, path)
  stored = exchange.read(path)
  assert {array.dtype for array in stored.tensors.values()} == {np.dtype("float32")}
  np.testing.assert_array_equal(stored.tensors["0.weight"], tensors["0.weight"].float().numpy())
  stored.build()


def test_the_users_normalisation_goes_before_the_files_and_stays_with_the_model(networks, pictures, tmp_path, capsys):
  torch.save(WRAPPERS["RobustBench"](networks["cnn_4"].state_dict()), tmp_path / "a.pt")
  arguments = [str(tmp_path / "a.pt"), str(tmp_path / "b"), "--mean=-0.5,0.5,0.25", "--std=0.5,2,1"]
  assert convert.main(arguments) == 0
  assert "normalised, mean -0.5 0.5 0.25 and std 0.5 2 1, as given" in capsys.readouterr().out
  described = json.loads((tmp_path / "b" / "config.json").read_text())
  assert described == {
    "architecture": "cnn_4", "num_classes": 7, "channels": 3, "mean": [-0.5, 0.5, 0.25], "std": [0.5, 2.0, 1.0],
  }  # fmt: skip
  expected = _logits(definitions.Normalised(networks["cnn_4"], (-0.5, 0.5, 0.25), (0.5, 2.0, 1.0)), pictures)
  np.testing.assert_allclose(exchange.load(tmp_path / "b").logits_fn(pictures), expected, atol=1e-4)
  assert convert.main([str(tmp_path / "b"), str(tmp_path / "c.safetensors")]) == 0
  assert "from its metadata" in capsys.readouterr().out
  np.testing.assert_allclose(exchange.load(tmp_path / "c.safetensors").logits_fn(pictures), expected, atol=1e-4)


def test_one_of_several_state_dicts_is_chosen(networks, tmp_path, capsys):
  tensors = networks["cnn_4"].state_dict()
  torch.save({"last": tensors, "best": {name: tensor + 1 for name, tensor in tensors.items()}}, tmp_path / "a.pt")
  line = _fail(capsys, tmp_path / "a.pt", tmp_path / "b")
  assert "several state_dicts; choose one by --key from ['best', 'last']" in line
  assert "no state_dict under --key='first'; choose from ['best', 'last']" in _fail(
    capsys, tmp_path / "a.pt", tmp_path / "b", "--key=first"
  )
  found = exchange.read(tmp_path / "a.pt", key="last").tensors["0.bias"]
  np.testing.assert_array_equal(found, tensors["0.bias"].numpy())


class _Runs:
  """Pickled, it is a command that makes a file wherever it is loaded."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", [lambda evil, tensors: evil, lambda evil, tensors: {"net": tensors, "acc": evil}])
def test_a_pickle_that_would_run_code_is_refused(place, networks, tmp_path, capsys):
  torch.save(place(_Runs(tmp_path / "ran"), networks["cnn_4"].state_dict()), tmp_path / "a.pt")
  line = _fail(capsys, tmp_path / "a.pt", tmp_path / "b.safetensors")
  assert "holds a Python object, posix.system, which is not loaded since that can run code" in line
  assert {path.name for path in tmp_path.iterdir()} == {"a.pt"}
  torch.load(tmp_path / "a.pt", weights_only=False)
  assert (tmp_path / "ran").exists()  # so that what is refused above would have run


def _without(tensors, *names):
  return {name: tensor for name, tensor in tensors.items() if name not in names}


BAD_FILES = {
  "left over: extra.weight": lambda tensors: tensors | {"extra.weight": torch.ones(2)},
  "missing: bn1.bias, conv1.weight": lambda tensors: _without(tensors, "bn1.bias", "conv1.weight"),
  "missing: bn1.bias, bn1.running_mean.* left over: bn1.gamma": lambda tensors: (
    _without(tensors, *(name for name in tensors if name.startswith("bn1."))) | {"bn1.gamma": torch.ones(64)}
  ),
  r"of another shape: fc.bias \[8\] instead of \[7\]": lambda tensors: tensors | {"fc.bias": torch.ones(8)},
  r"not float32: bn1.bias int64": lambda tensors: tensors | {"bn1.bias": torch.ones(64, dtype=torch.int64)},
  r"fc.weight is missing": lambda tensors: _without(tensors, "fc.weight"),
  r"fc.weight has the shape \[7\]": lambda tensors: tensors | {"fc.weight": torch.ones(7)},
  r"a, b, c, d and 2 more are no network known here: ResNet-18": lambda _: dict.fromkeys("abcdef", torch.ones(1)),
  r"holds no state_dict but only \['epoch', 'lr'\]": lambda _: {"epoch": 3, "lr": 0.1},
  "holds no state_dict but list": lambda tensors: [tensors],
  r"conv1.weight is no plain tensor \(torch.float32, torch.sparse_coo\)": lambda tensors: (
    tensors | {"conv1.weight": tensors["conv1.weight"].to_sparse()}
  ),
  "mean .* is of 3 channels, the network of 1|left over: mean, std": lambda tensors: (
    tensors | {"mean": torch.ones(2), "std": torch.ones(2)}
  ),
  "every std above 0": lambda tensors: tensors | {"mu": torch.ones(3), "sigma": torch.zeros(3)},
}


@pytest.mark.filterwarnings("ignore:.*TypedStorage")
@pytest.mark.parametrize("message", BAD_FILES)
def test_what_does_not_fit_is_one_line(message, networks, tmp_path, capsys):
  torch.save(BAD_FILES[message](networks["wide_resnet_10_1"].state_dict()), tmp_path / "a.pt")
  line = _fail(capsys, tmp_path / "a.pt", tmp_path / "b")
  assert re.search(message, line) and str(tmp_path / "a.pt") in line, line
  assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["resnet18_4", "preact_resnet18_4"])
def test_a_residual_network_of_another_depth_is_refused(name, networks, tmp_path, capsys):
  tensors = networks[name].state_dict()
  third = {key.replace("layer1.1.", "layer1.2."): value for key, value in tensors.items() if "layer1.1." in key}
  torch.save(tensors | third, tmp_path / "a.pt")
  line = _fail(capsys, tmp_path / "a.pt", tmp_path / "b")
  assert f"look like {name} but do not fit; left over: layer1.2.bn1.bias" in line


@pytest.mark.parametrize(
  ("content", "name", "message"),
  [
    (b"no such thing", "a.pt", "is no whole PyTorch file"),
    (b"", "a.pth", "is no whole PyTorch file"),
    (b"no such thing", "a.safetensors", "cannot be read: Error while deserializing header"),
    (b"", "a.safetensors", "cannot be read"),
    (b"{}", "a.json", "is none of .pt, .pth, .safetensors and no directory"),
    (None, "none.pt", "cannot be read: No such file or directory"),
    (None, "none.safetensors", "cannot be read: No such file or directory"),
    (None, ".", "model.safetensors cannot be read"),
  ],
)
def test_damaged_and_foreign_files_are_one_line(content, name, message, tmp_path, capsys):
  if content is not None:
    (tmp_path / name).write_bytes(content)
  assert message in _fail(capsys, tmp_path / name, tmp_path / "b")


@pytest.mark.parametrize("size", [10, 400, -1])
def test_cut_files_are_one_line(size, networks, tmp_path, capsys):
  torch.save(networks["cnn_4"].state_dict(), tmp_path / "a.pt")
  safetensors.torch.save_file(networks["cnn_4"].state_dict(), tmp_path / "a.safetensors")
  for path in (tmp_path / "a.pt", tmp_path / "a.safetensors"):
    path.write_bytes(path.read_bytes()[:size])
    assert str(path) in _fail(capsys, path, tmp_path / "b")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["a.pt"], "SOURCE and DESTINATION are needed, 1 given"),
    (["a.pt", "b", "c"], "3 given"),
    (["a.pt", "b.npz"], "b.npz must be NAME.safetensors, or a directory"),
    (["a.pt", "b", "--mean=0.5"], "--mean and --std go together"),
    (["a.pt", "b", "--mean=x", "--std=1"], "--mean='x' must be numbers"),
    (["a.pt", "b", "--means=1"], "Unknown command line flag 'means'"),
    (["a.pt", "b", "--robustbench=e.json"], "a.pt/results.json is not there"),
    (["a\0.pt", "b"], "holds a null character"),
  ],
)
def test_bad_commands_are_one_line(arguments, message, capsys):
  assert message in _fail(capsys, *arguments)


@pytest.mark.parametrize("mean", ["0.5, 0.5]", '"x"', "{}", "3"])
def test_metadata_that_are_no_numbers_are_one_line(mean, networks, tmp_path, capsys):
  metadata = {"mean": mean, "std": "[1.0]"}
  safetensors.torch.save_file(networks["cnn_4"].state_dict(), tmp_path / "a.safetensors", metadata)
  line = _fail(capsys, tmp_path / "a.safetensors", tmp_path / "b")
  assert "which is no list of numbers" in line or "must be as many" in line or "of 0 channels" in line


def test_where_nothing_can_be_written_the_exit_code_is_4(networks, tmp_path, capsys):
  torch.save(networks["cnn_4"].state_dict(), tmp_path / "a.pt")
  assert convert.main([str(tmp_path / "a.pt"), str(tmp_path / "none" / "b.safetensors")]) == 4
  assert "b.safetensors.tmp cannot be written: No such file" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(the workdir of a small run on digits, whose average of weights is judged; the arguments that made it)."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  arguments = [f"--config={ROOT}/configs/at.py", *(f"--config.{name}={value}" for name, value in SMALL.items())]
  arguments += ["--config.train.ema_decay=0.9", "--config.eval.num_images=100"]
  assert main.main([*arguments, f"--workdir={workdir}"]) == 0
  return workdir, arguments


def test_a_run_goes_out_and_is_judged_the_same_from_there(run, tmp_path, capsys):
  """What leaves a run and comes back as `--model` gives the same answers to every attack."""
  workdir, arguments = run
  assert convert.main([str(workdir), str(tmp_path / "mine.safetensors")]) == 0
  assert "cnn_4, 10 classes, 1 channels" in capsys.readouterr().out
  with safetensors.safe_open(tmp_path / "mine.safetensors", framework="numpy") as file:
    metadata = file.metadata()
  assert metadata["trained_against"] == '["linf 0.2"]' and metadata["mean"] == "[0.305]"
  assert metadata["architecture"] == "cnn_4" and metadata["format"] == "pt"
  model, judged = f"--model={tmp_path}/mine.safetensors", tmp_path / "judged"
  judging = [argument for argument in arguments if ".train" not in argument]
  assert main.main([*judging, model, f"--workdir={judged}"]) == 0
  results, expected = (json.loads((folder / "results.json").read_text()) for folder in (judged, workdir))
  assert results["robust"] == expected["robust"] and results["clean"] == expected["clean"]
  assert results["name"] == "mine" and results["architecture"] == "cnn_4"
  with np.load(judged / "per_example.npz") as ours, np.load(workdir / "per_example.npz") as theirs:
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_judgement_becomes_an_entry_of_robustbench(run, tmp_path, capsys):
  workdir, _ = run
  line = _fail(capsys, workdir, tmp_path / "a.safetensors", f"--robustbench={tmp_path}/entry.json")
  assert "results hold no standard AutoAttack" in line and not list(tmp_path.iterdir())
  results = json.loads((workdir / "results.json").read_text())
  entry = {"name": "autoattack", "norm": "linf", "epsilon": "0.2", "version": "standard"}
  folder = tmp_path / "standard"
  (folder / "checkpoints").mkdir(parents=True)
  results |= {"suite": {"autoattack": entry}, "robust": {"autoattack": 0.25}}
  (folder / "results.json").write_text(json.dumps(results))
  written = convert._robustbench(folder)
  assert written["autoattack_acc"] == "25.00" and written["architecture"] == "cnn_4" and written["dataset"] == "digits"
  (folder / "results.json").write_text(json.dumps(_without(results, "configuration")))
  assert "holds no whole results" in _fail(capsys, folder, tmp_path / "a", f"--robustbench={tmp_path}/entry.json")


def test_a_run_without_a_checkpoint_or_with_a_damaged_one_is_one_line(run, tmp_path, capsys):
  (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
  assert "holds no finished checkpoint; train there first" in _fail(capsys, tmp_path / "empty", tmp_path / "a")
  workdir, _ = run
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "checkpoints").symlink_to(workdir / "checkpoints")
  assert "config.json is damaged" in _fail(capsys, tmp_path / "other", tmp_path / "a")
  config = json.loads((workdir / "config.json").read_text())
  config["model"]["name"] = "resnet18_4"
  (tmp_path / "other" / "config.json").write_text(json.dumps(config))
  assert "config.json and checkpoint do not fit" in _fail(capsys, tmp_path / "other", tmp_path / "a")
  assert "holds a training run" in _fail(capsys, workdir, tmp_path / "other")


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: definitions.cnn(4, 7, 1, 8), r"must return float logits \(2, 10\)"),
    (lambda: definitions.cnn(4, 10, 3, 8), r"failed on images \(2, 8, 8, 1\)"),
    (lambda: definitions.cnn(4, 10, 1, 28), r"failed on images \(2, 8, 8, 1\)"),
    (lambda: torch.nn.Linear(3, 3), "are no network known here"),
  ],
)
def test_a_file_that_does_not_fit_the_data_is_one_line(make, message, run, tmp_path, capsys):
  torch.save(make().state_dict(), tmp_path / "a.pt")
  command = [argument for argument in run[1] if ".train" not in argument]
  assert main.main([*command, f"--model={tmp_path}/a.pt", f"--workdir={tmp_path}/judged"]) == 2
  assert re.fullmatch(rf"error: --model=.*{message}.*\n", capsys.readouterr().err)
  assert not (tmp_path / "judged" / "results.json").exists()


def test_a_workdir_is_no_file_of_weights(run, tmp_path, capsys):
  assert main.main([*run[1], f"--model={run[0]}", f"--workdir={tmp_path}/judged"]) == 2
  assert "is a run's workdir; judge it by --mode=evaluate --workdir=" in capsys.readouterr().err


def test_pytorch_is_imported_only_where_its_files_are_read(networks, tmp_path):
  """And where it is not installed, that is one line."""
  safetensors.torch.save_file(networks["cnn_4"].state_dict(), tmp_path / "a.safetensors")
  torch.save(networks["cnn_4"].state_dict(), tmp_path / "a.pt")
  code = (
    "import sys; sys.modules['torch'] = None; from lrat_jax import convert, main; "
    "print([convert.main([name, 'b.safetensors']) for name in ('a.safetensors', 'a.pt')])"
  )
  ended = subprocess.run(
    [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
  )  # fmt: skip
  assert ended.stdout.endswith("[0, 2]\n"), ended.stderr
  assert ended.stderr.splitlines()[-1].startswith(
    "error: a.pt is read by PyTorch, which is not installed; install torch"
  )


def test_help_and_numbers(capsys):
  assert convert.main(["--help"]) == 0
  assert "SOURCE" in capsys.readouterr().out
