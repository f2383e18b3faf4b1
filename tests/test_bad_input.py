"""Bad input is one line with exit code 2; help, and the commands that the documentation gives, are understood."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from lrat_jax import main
from lrat_jax.config import command_line, validate
from lrat_jax.config.default import PRESETS
from lrat_jax.config.methods import METHODS
from lrat_jax.config.suites import SUITES
from tests import programs
from tests.helpers import make_split

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
ARGUMENTS = list(programs.RUN)


@pytest.mark.parametrize("option", ["--dry_run", "--track=wandb"])
def test_what_is_for_a_run_is_not_for_a_model(option, capsys):
  assert main.main([*ARGUMENTS, "--model=examples.flax_nnx:make_model", option]) == 2
  assert f"error: {option.partition('=')[0]} is for a run of a configuration" in capsys.readouterr().err


BAD_INPUT = {
  "": "--config is missing",
  "--config={configs}/nothing.py": r"is neither a method \(.*\) nor a file",
  "--config={configs}/lrat.py:mnist": "data set 'mnist' is unknown .* choose from",
  "--config={configs}/lrat.py:digits,fgms": "training attack 'fgms' is unknown .* choose from",
  "--config={configs}/lrat.py --config.train.epochz=3": r"config.train.epochz is unknown; config.train: choose from \[",
  "--config={configs}/lrat.py --config.train.epochs=three": "--config.train.epochs=three: invalid literal for int",
  "--config={configs}/lrat.py --config.train=3": "config.train is a group of the fields",
  "--config={configs}/lrat.py --config.train_attacks=pgd,cw": "chosen in the config's argument",
  "--config={configs}/lrat.py --config.seed": "options are written --name=value",
  "--config={configs}/lrat.py --config.seed.x=1": "it is a value, not a group",
  "--config={configs}/lrat.py digits": "'digits' is not understood",
  "--config={configs}/lrat.py --workdri=x": "Unknown command line flag 'workdri'",
  "--config={configs}/lrat.py --mode=test": "--mode='test' is unknown; choose from .*'evaluate'",
  "--config={configs}/lrat.py --config.eval.batch_size=128 --mode=evaluate": "contains no checkpoint to evaluate",
  "--config={configs}/lrat.py --config.train_attacks.pgd.epsilon=-0.1": r"pgd.epsilon=-0.1 is outside \[0, 1\]",
  "--config={configs}/lrat.py --config.train_attacks.pgd.epsilon=2": r"pgd.epsilon=2 is outside \[0, 1\]",
  "--config={configs}/lrat.py --config.model.name=resnet19": "config.model.name='resnet19' is not a model; choose from",
  "--config={configs}/lrat.py --config.data.batch_size=60": "batch_size=60 is not divisible by the 8 devices",
  "--config={configs}/lrat.py --config.eval.batch_size=128 --config.data.source=npz:/x.npz": "there is no such file",
  "--config={configs}/lrat.py --config.eval.batch_size=128 --config.data.validation_size=1297": "must be in",
}


@pytest.mark.parametrize("arguments", BAD_INPUT)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(arguments, tmp_path, capsys):
  workdir = tmp_path / "run"
  words = shlex.split(arguments.format(configs=ROOT / "configs"))
  assert main.main([*words, f"--workdir={workdir}"]) == 2
  error = capsys.readouterr().err
  assert re.fullmatch(rf"error: .*{BAD_INPUT[arguments]}.*\n", error), error
  assert not workdir.exists()


def test_a_workdir_that_cannot_be_is_named(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
    assert main.main([*ARGUMENTS, f"--workdir={workdir}"]) == 2
    assert f"--workdir={workdir}" in capsys.readouterr().err


def test_labels_outside_the_classes_are_named(tmp_path, capsys):
  train, test = make_split(40), make_split(8)
  arrays = {"train_images": train.images, "train_labels": train.labels, "test_images": test.images}
  np.savez(tmp_path / "data.npz", **arrays, test_labels=test.labels + 1)
  source = [f"--config.data.source=npz:{tmp_path}/data.npz", "--config.data.validation_size=8"]
  assert main.main([*ARGUMENTS, *source, f"--workdir={tmp_path}/run"]) == 2
  assert "test labels range from 1 to 4; the classes are 0..3" in capsys.readouterr().err


def test_help_names_the_options(capsys):
  assert main.main(["--help"]) == 0
  shown = capsys.readouterr().out
  assert all(option in shown for option in ("--config", "--workdir", "--mode", *command_line.MODES))
  assert max(len(line) for line in shown.splitlines()) <= 100
  assert {*METHODS, *PRESETS, *SUITES} <= set(re.findall(r"\w+", shown))


def _commands(text):
  """Every `python -m lrat_jax.main` command in a text, with its continued lines joined."""
  found = re.findall(r"python -m lrat_jax\.main ([^\n`#]*)", text.replace("\\\n", " "))
  return [re.split(r" {2,}|&&", command)[0].strip() for command in found]


@pytest.mark.parametrize(
  "path", [ROOT / "README.md", ROOT / "lrat_jax/main.py", *sorted((ROOT / "configs").glob("*.py"))], ids=str
)
def test_every_command_that_we_print_is_understood(path):
  commands = _commands(path.read_text())
  assert commands
  for command in commands:
    config = command_line.parse(shlex.split(command)).config
    validate.check(config)
