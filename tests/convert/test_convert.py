"""The conversion command, and weight files, which the program evaluates in the same way as its own runs."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

from lrat_jax import main
from lrat_jax.convert import __main__ as convert
from lrat_jax.convert import exchange
from tests import torch_definitions as definitions
from tests.helpers import SMALL
from tests.torch_transformers import VisionTransformer

ROOT = Path(__file__).parent.parent.parent


def _fail(capsys, *arguments):
  """The one-line error of a command that must fail with exit code 2."""
  assert convert.main([str(argument) for argument in arguments]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1, error
  return error


def test_the_users_normalisation_goes_before_the_files_and_stays_with_the_model(tmp_path, capsys):
  network, images = definitions.trained("cnn_4"), definitions.pictures()
  normalised = definitions.Normalised(network, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), ("mu", "sigma"))
  torch.save(normalised.state_dict(), tmp_path / "a.pt")
  mean, std = (-0.5, 0.5, 0.25), (0.5, 2.0, 1.0)
  arguments = [str(tmp_path / "a.pt"), str(tmp_path / "b"), "--mean=-0.5,0.5,0.25", "--std=0.5,2,1"]
  assert convert.main(arguments) == 0
  assert "normalised, mean -0.5 0.5 0.25 and std 0.5 2 1, as given" in capsys.readouterr().out
  described = json.loads((tmp_path / "b" / "config.json").read_text())
  about = {"architecture": "cnn_4", "num_classes": 7, "channels": 3, "activation": "relu", "preprocessing": "mean_std"}
  assert described == about | {"mean": list(mean), "std": list(std)}
  expected = definitions.logits(definitions.Normalised(network, mean, std), images)
  assert convert.main([str(tmp_path / "b"), str(tmp_path / "c.safetensors")]) == 0
  assert "from its metadata" in capsys.readouterr().out
  for name in ("b", "c.safetensors"):
    np.testing.assert_allclose(exchange.load(tmp_path / name).logits_fn(images), expected, atol=1e-4)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["a.pt"], "SOURCE and DESTINATION are required, but 1 given"),
    (["a.pt", "b", "c"], "3 given"),
    (["a.pt", "b.npz"], "b.npz must be NAME.safetensors, or a directory"),
    (["a.pt", "b", "--mean=0.5"], "--mean and --std go together"),
    (["a.pt", "b", "--mean=x", "--std=1"], "--mean='x' must be numbers"),
    (["a.pt", "b", "--means=1"], "Unknown command line flag 'means'"),
    (["a.pt", "b", "--robustbench_entry=e.json"], "a.pt/results.json does not exist"),
    (["a\0.pt", "b"], "contains a null character"),
  ],
)
def test_bad_commands_are_one_line(arguments, message, capsys):
  assert message in _fail(capsys, *arguments)


def test_where_nothing_can_be_written_the_exit_code_is_4(tmp_path, capsys):
  torch.save(definitions.trained("cnn_4").state_dict(), tmp_path / "a.pt")
  assert convert.main([str(tmp_path / "a.pt"), str(tmp_path / "none" / "b.safetensors"), "--mean=0", "--std=1"]) == 4
  assert "b.safetensors.tmp cannot be written: No such file" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(the workdir of a small run on digits, evaluated with averaged weights; the arguments of the run)."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  fields = (f"--config.{name}={value}" for name, value in SMALL.items())
  arguments = [f"--config={ROOT}/configs/at.py:digits,suite=pgd", *fields]
  arguments += ["--config.train.ema_decay=0.9", "--config.eval.num_images=100"]
  assert main.main([*arguments, f"--workdir={workdir}"]) == 0
  return workdir, arguments


@pytest.mark.slow
def test_a_run_goes_out_and_is_evaluated_the_same_from_there(run, tmp_path, capsys):
  """A run that is exported and loaded with `--model` has the same results under every attack."""
  workdir, arguments = run
  assert convert.main([str(workdir), str(tmp_path / "mine.safetensors")]) == 0
  assert "cnn_4, 10 classes, 1 channels" in capsys.readouterr().out
  with safetensors.safe_open(tmp_path / "mine.safetensors", framework="numpy") as file:
    metadata = file.metadata()
  assert metadata["trained_against"] == '["linf 0.2"]' and metadata["mean"] == "[0.305]"
  assert metadata["architecture"] == "cnn_4" and metadata["format"] == "pt"
  model, evaluated = f"--model={tmp_path}/mine.safetensors", tmp_path / "evaluated"
  evaluation = [argument for argument in arguments if ".train" not in argument]
  assert main.main([*evaluation, model, f"--workdir={evaluated}"]) == 0
  results, expected = (json.loads((folder / "results.json").read_text()) for folder in (evaluated, workdir))
  assert results["robust"] == expected["robust"] and results["clean"] == expected["clean"]
  assert results["name"] == "mine" and results["architecture"] == "cnn_4"
  with np.load(evaluated / "per_example.npz") as ours, np.load(workdir / "per_example.npz") as theirs:
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_a_file_may_be_attacked_in_bfloat16_and_its_verdict_is_float32s(run, tmp_path, capsys):
  workdir, arguments = run
  assert convert.main([str(workdir), str(tmp_path / "mine.safetensors")]) == 0
  evaluation = [argument for argument in arguments if ".train" not in argument]
  evaluation += [f"--model={tmp_path}/mine.safetensors", f"--workdir={tmp_path}/evaluated"]
  assert main.main([*evaluation, "--config.eval.attack_dtype=bfloat16"]) == 0
  results, expected = (
    json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "evaluated", workdir)
  )
  assert results["dtypes"] == {"attacks": "bfloat16", "verdict": "float32"}
  assert expected["dtypes"] == {"attacks": "float32", "verdict": "float32"}
  assert results["clean"] == expected["clean"]
  capsys.readouterr()
  model = "--model=examples.plain_function:logits_fn"
  assert main.main([*evaluation[:-2], model, "--config.eval.attack_dtype=bfloat16", f"--workdir={tmp_path}/f"]) == 2
  assert "config.eval.attack_dtype='bfloat16' is only for a file of weights" in capsys.readouterr().err


def test_a_evaluation_becomes_an_entry_of_robustbench(run, tmp_path, capsys):
  workdir, _ = run
  line = _fail(capsys, workdir, tmp_path / "a.safetensors", f"--robustbench_entry={tmp_path}/entry.json")
  assert "results contain no standard AutoAttack" in line and not list(tmp_path.iterdir())
  results = json.loads((workdir / "results.json").read_text())
  entry = {"name": "autoattack", "norm": "linf", "epsilon": "0.2", "version": "standard"}
  folder = tmp_path / "standard"
  (folder / "checkpoints").mkdir(parents=True)
  results |= {"suite": {"autoattack": entry}, "robust": {"autoattack": 0.25}}
  (folder / "results.json").write_text(json.dumps(results))
  written = convert._robustbench(folder)
  assert written["autoattack_acc"] == "25.00" and written["architecture"] == "cnn_4" and written["dataset"] == "digits"
  del results["config"]
  (folder / "results.json").write_text(json.dumps(results))
  line = _fail(capsys, folder, tmp_path / "a", f"--robustbench_entry={tmp_path}/entry.json")
  assert "contains no complete results" in line


def test_a_run_without_a_checkpoint_or_with_a_damaged_one_is_one_line(run, tmp_path, capsys):
  (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
  assert "contains no finished checkpoint; train there first" in _fail(capsys, tmp_path / "empty", tmp_path / "a")
  workdir, _ = run
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "checkpoints").symlink_to(workdir / "checkpoints")
  assert "config.json is damaged" in _fail(capsys, tmp_path / "other", tmp_path / "a")
  config = json.loads((workdir / "config.json").read_text())
  config["model"]["name"] = "resnet18_4"
  (tmp_path / "other" / "config.json").write_text(json.dumps(config))
  assert "config.json and the checkpoint do not match" in _fail(capsys, tmp_path / "other", tmp_path / "a")
  config["model"]["name"] = "tests.user_functions:never_imported"
  (tmp_path / "other" / "config.json").write_text(json.dumps(config))
  line = _fail(capsys, tmp_path / "other", tmp_path / "a")
  assert "other: its network is user code, 'tests.user_functions:never" in line
  assert "contains a training run" in _fail(capsys, workdir, tmp_path / "other")
  shutil.copytree(workdir, tmp_path / "damaged")
  saved = tmp_path / "damaged" / "checkpoints"
  for digests in saved.glob("*/sha256.json"):
    digests.unlink()
  line = _fail(capsys, tmp_path / "damaged", tmp_path / "a")
  assert "is damaged: its sha256.json is missing" in line
  assert sorted(path.name for path in saved.iterdir()) == sorted(
    path.name for path in (workdir / "checkpoints").iterdir()
  )


@pytest.mark.parametrize(
  ("name", "stored", "short"),
  [
    ("a/b.safetensors", True, "b"),
    ("a/b.PTH", True, "b"),
    ("tests", True, "tests"),
    ("examples.flax_nnx:make_model", False, "examples.flax_nnx.make_model"),
    ("package.module:weights.pt", False, "package.module.weights.pt"),
    ("package.module", False, "package.module"),
    ("x" * 5000 + ".pt", False, "x" * 5000 + ".pt"),
  ],
)
def test_weights_and_functions_are_told_apart_by_their_names(name, stored, short, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert exchange.is_stored(name) == stored and exchange.label(name) == short


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: definitions.cnn(4, 7, 1, 8), r"must return float logits \(2, 10\)"),
    (lambda: definitions.cnn(4, 11, 1, 8), r"must return float logits \(2, 10\); .* such as a reject class, are not"),
    (lambda: definitions.cnn(4, 10, 3, 8), r"failed on images \(2, 8, 8, 1\)"),
    (lambda: definitions.cnn(4, 10, 1, 28), r"failed on images \(2, 8, 8, 1\)"),
    (lambda: VisionTransformer(12, 192, 3, 4, 12, 10, 1), r"failed on images .*position embedding is for 9"),
    (lambda: torch.nn.Linear(3, 3), "not the tensors of a known network"),
  ],
)
def test_a_file_that_does_not_fit_the_data_is_one_line(make, message, run, tmp_path, capsys):
  torch.save(make().state_dict(), tmp_path / "a.pt")
  command = [argument for argument in run[1] if ".train" not in argument]
  assert (
    main.main([*command, f"--model={tmp_path}/a.pt", "--mean=0", "--std=1", f"--workdir={tmp_path}/evaluated"]) == 2
  )
  assert re.fullmatch(rf"error: --model=.*{message}.*\n", capsys.readouterr().err)
  assert not (tmp_path / "evaluated" / "results.json").exists()


def test_a_workdir_is_no_file_of_weights(run, tmp_path, capsys):
  assert main.main([*run[1], f"--model={run[0]}", f"--workdir={tmp_path}/evaluated"]) == 2
  assert "is a run's workdir; evaluate it with --mode=evaluate --workdir=" in capsys.readouterr().err


def test_every_command_that_we_print_is_understood():
  for text in ((ROOT / "docs/models.md").read_text(), convert.__doc__):
    commands = re.findall(r"python -m lrat_jax\.convert ([^\n`]*)", text)
    assert len(commands) > 1
    assert all(convert.parse(re.split(" {2,}", command)[0].split()) for command in commands)


def test_help(capsys):
  assert convert.main(["--help"]) == 0
  assert "SOURCE" in capsys.readouterr().out


def test_one_of_several_state_dicts_is_evaluated_by_key(run, tmp_path, capsys):
  """The options that the error suggests work with `--model`."""
  tensors = definitions.cnn(4, 10, 1, 8).state_dict()
  torch.save({"raw": tensors, "ema": tensors}, tmp_path / "two.pt")
  command = [argument for argument in run[1] if ".train" not in argument]
  command += [f"--model={tmp_path}/two.pt", f"--workdir={tmp_path}/evaluated"]
  assert main.main([*command, "--mean=0", "--std=1"]) == 2
  assert "several state_dicts; choose one with --key from ['ema', 'raw']" in capsys.readouterr().err
  assert main.main([*command, "--key=ema"]) == 2
  assert "does not define the preprocessing of images" in capsys.readouterr().err
  assert main.main([*command, "--key=ema", "--preprocessing=zca"]) == 2
  assert "preprocessing='zca' is unknown; choose from ['none', " in capsys.readouterr().err
  assert main.main([*command, "--key=ema", "--mean=0.3", "--std=0.4"]) == 0
  assert "mean 0.3 and std 0.4, as given" in capsys.readouterr().out
  assert main.main([*run[1], "--key=ema", "--preprocessing=none"]) == 2
  assert "--key, --preprocessing: only valid with --model, which is not given" in capsys.readouterr().err
