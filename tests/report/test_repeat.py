"""The command that a page shows makes the very configuration of the run."""

import shlex
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from lrat_jax.config import command_line
from lrat_jax.report import repeat, runs
from lrat_jax.training import workdir as workdir_lib

ROOT = Path(__file__).parent.parent.parent
METHODS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def _command(config, workdir="runs/it"):
  run = runs.Run(Path(workdir), config.name, config.seed, config, None, None, None, [], None, None)
  return repeat.command(run, repeat.origin(config))


def _config(*arguments):
  return command_line.parse([argument.replace("configs/", f"{ROOT}/configs/") for argument in arguments]).config


@pytest.mark.parametrize("method", METHODS)
def test_a_configuration_without_changes_is_known_by_its_file(method):
  config = _config(f"--config=configs/{method}.py:cifar10,suite=autoattack")
  found = repeat.origin(config)
  assert found == repeat.Origin(f"configs/{method}.py:cifar10,suite=autoattack", [])


@pytest.mark.parametrize(
  "arguments",
  [
    [
      "--config=configs/lrat.py:digits,pgd,cw,suite=unforeseen",
      "--config.seed=3",
      "--config.train_attacks.cw.epsilon=8/255",
    ],
    [
      "--config=configs/irat.py:svhn",
      "--config.global_weights.kind=mail",
      "--config.optimizer.boundary_fractions=(0.3,0.6)",
    ],
    ["--config=configs/trades.py:digits,kl,cw", "--config.local_weights.kind=lrat", "--config.beta=2.5"],
    ["--config=configs/at.py:fashion_mnist", "--config.data.source=idx:a folder/x", "--config.name=my.own"],
    ["--config=configs/at.py", "--config.optimizer.nesterov=True", "--config.optimizer.boundary_fractions=(0.5,)"],
  ],
)
def test_the_command_makes_the_configuration_again(arguments):
  config = _config(*arguments)
  words = shlex.split(_command(config, "runs/a b"))
  assert words[:3] == ["python", "-m", "lrat_jax.main"] and words[-1] == "--workdir=runs/a b"
  assert workdir_lib.portable(_config(*words[3:])) == workdir_lib.portable(config)


def test_no_command_is_made_up_for_attacks_that_no_file_names():
  plain = _config("--config=configs/at.py").to_dict()
  plain["train_attacks"] = {"mine": plain["train_attacks"]["pgd"]}
  assert repeat.origin(ConfigDict(plain)) is None and _command(ConfigDict(plain)) is None


def test_a_evaluated_function_is_evaluated_again():
  config = _config("--config=configs/at.py:digits,suite=apgd")
  results = {"data": "digits", "suite": config.eval.suite.to_dict()}
  run = runs.Run(Path("w"), "a.b:c", 5, None, results, None, None, [], None, None)
  words = shlex.split(repeat.command(run, None))[3:]
  assert words == ["--config=configs/at.py:digits,suite=apgd", "--model=a.b:c", "--config.seed=5", "--workdir=w"]
  results["suite"]["autoattack"]["epsilon"] = "0.3"
  assert repeat.command(run, None) is None
