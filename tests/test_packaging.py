"""The package's metadata: one list of requirements, methods that are part of the package, a console script."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lrat_jax import cli
from lrat_jax.config import command_line, methods
from lrat_jax.core import provenance

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_requirements_are_the_core_and_the_extras_that_the_readme_uses():
  lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
  extras = PROJECT["optional-dependencies"]
  assert sorted(filter(None, lines)) == sorted(PROJECT["dependencies"] + extras["tfds"] + extras["report"])


def test_every_method_has_a_file_in_configs_that_is_the_packaged_one():
  files = {path.stem: path for path in (ROOT / "configs").glob("*.py")}
  assert set(files) == set(methods.METHODS) == set(command_line.METHODS)
  for name, path in files.items():
    by_file, by_name = (command_line.parse([f"--config={it}:cifar10,pgd"]).config for it in (path, name))
    assert by_file == by_name and by_name.name == f"{name}_cifar10_pgd"


@pytest.mark.parametrize("spelling", [["--config=lrat:digits"], ["--config", "lrat:digits"], ["-config=lrat:digits"]])
def test_a_method_is_found_from_any_folder(tmp_path, monkeypatch, spelling):
  monkeypatch.chdir(tmp_path)
  options = command_line.parse([*spelling, "--config.seed=3", "--workdir=x", "--mode=train"])
  assert options.config.name == "lrat_digits" and options.config.local_weights.kind == "lrat"
  assert options.preset == "lrat:digits" and "--config.seed=3" in options.arguments
  assert not any(argument.startswith(("--workdir", "--mode")) for argument in options.arguments)


def test_a_wrong_argument_of_a_method_is_quoted_as_it_was_given():
  with pytest.raises(command_line.ConfigError) as raised:
    command_line.parse(["--config=lrat:digts"])
  assert str(raised.value).startswith("--config=lrat:digts: data set 'digts' is unknown")
  with pytest.raises(command_line.ConfigError, match=r"=lart: 'lart' is neither a method \(at, .*\) nor a file"):
    command_line.parse(["--config=lart"])


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "--confg=lrat"], ["fly"], []])
def test_help_and_a_wrong_word_import_no_jax(arguments):
  code = f"import sys; from lrat_jax import cli; c = cli.main({arguments!r}); print('jax' in sys.modules, c)"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  wrong = "--help" not in arguments
  assert done.stdout.splitlines()[-1] == f"False {2 if wrong else 0}"
  assert len(done.stderr.splitlines()) == (1 if wrong and arguments else 0)


def test_the_version_is_the_projects(capsys):
  assert provenance.version() == PROJECT["version"]
  assert cli.main(["--version"]) == 0 and capsys.readouterr().out == f"lrat_jax {PROJECT['version']}\n"
  assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
