"""The comparison program from the command line: its files, exit codes and one-line errors; no run is repeated."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lrat_jax.compare import __main__ as compare
from tests.helpers import SMALL

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
FIELDS = [f"--config.{name}={value}" for name, value in (SMALL | {"train.epochs": 1}).items()]
BROKEN = "at@optimizer.learning_rate=1e4@optimizer.schedule=constant"


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)


def test_methods_are_run_once_and_one_that_breaks_down_is_missing(tmp_path, capsys):
  arguments = [
    f"--methods=at,irat,{BROKEN}",
    "--seeds=0",
    "--suite=pgd",
    "--jobs=2",
    f"--workdir={tmp_path}/c",
    *FIELDS,
  ]
  assert compare.main(arguments) == compare.NOT_FINITE
  printed = capsys.readouterr().out
  assert "3 runs, 0 of them already finished." in printed and f"{BROKEN} seed 0: FAILED in" in printed
  assert "is not finite at step" in printed
  summary = json.loads((tmp_path / "c" / "comparison.json").read_text())
  assert summary["missing"] == [f"{BROKEN} seed 0"] and summary["command"].startswith("python -m lrat_jax.compare")
  for method in ("at", "irat"):
    results = json.loads((tmp_path / "c" / method / "seed0" / "results.json").read_text())
    np.testing.assert_allclose(summary["methods"][method]["mean"]["pgd20"], results["robust"]["pgd20"])
  assert (tmp_path / "c" / "comparison.png").read_bytes().startswith(b"\x89PNG")
  before = (tmp_path / "c" / "at" / "seed0" / "results.json").stat().st_mtime_ns
  arguments[0] = "--methods=at,irat"
  assert compare.main(arguments) == 0
  printed = capsys.readouterr().out
  assert "2 runs, 2 of them already finished." in printed and "| irat |" in printed
  assert (tmp_path / "c" / "at" / "seed0" / "results.json").stat().st_mtime_ns == before
  assert compare.main([*arguments, "--config.train.epochs=2"]) == compare.BAD_INPUT
  assert "config.train.epochs: 1 in the workdir, 2 asked for" in capsys.readouterr().err
  config = tmp_path / "c" / "at" / "seed0" / "config.json"
  content = json.loads(config.read_text())
  content["run"]["data"]["test"] = "float32 [500, 8, 8, 1] sha256:of other images"
  config.write_text(json.dumps(content))
  assert compare.main(arguments) == compare.BAD_INPUT
  assert "at/seed0 contains a run on different data with the same name (test: " in capsys.readouterr().err


def test_a_comparison_that_is_stopped_leaves_no_run_behind(tmp_path):
  command = [sys.executable, "-m", "lrat_jax.compare", "--methods=at,irat", "--seeds=0", f"--workdir={tmp_path}"]
  comparing = subprocess.Popen([*command, *FIELDS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  folder = tmp_path / "at" / "seed0"
  while not (folder / "config.json").exists():
    assert comparing.poll() is None
    time.sleep(0.05)
  comparing.terminate()
  assert comparing.wait() == 128 + signal.SIGTERM
  assert not subprocess.run(["pgrep", "-f", str(folder)], capture_output=True).stdout
  assert not (folder / "results.json").exists() and not (tmp_path / "irat").exists()


@pytest.mark.parametrize(
  "arguments, reason",
  [
    ([], "--methods is missing"),
    (["--methods=at,lart"], "'lart' is not a method, and the file configs/lart.py does not exist"),
    (["--methods=at,at"], "--methods='at,at' contains an entry twice"),
    (["--methods=at", "--seeds=0,x"], "--seeds='0,x' must be whole numbers"),
    (["--methods=at", "--data=mnist"], "--data='mnist' is unknown; choose from ['cifar10'"),
    (["--methods=at", "--data=digits,pgd"], "--data='digits,pgd': 'pgd' does not set a radius, as linf=4/255 does"),
    (["--methods=at", "--data=digits,l2"], "--data='digits,l2': 'l2' does not set a radius, as linf=4/255 does"),
    (["--methods=at", "--data=digits,l2=0"], "the config's argument 'digits,l2=0,suite=full': l2=0 must be above 0"),
    (["--methods=at", "--suite=all"], "--suite='all' is unknown; choose from ['apgd'"),
    (["--methods=at", "--jobs=0"], "--jobs=0 must be between 1 and"),
    (["--methods=at", "--config.beta=-2.0"], "at: config.beta=-2.0 is outside"),
    (["--methods=at", "--config.seed=3"], "--config.seed cannot be set for a comparison; use --seeds"),
    (["--methods=at", "more"], "'more' is not understood"),
    (["--methods=at", "--seed=0"], "seed"),
  ],
)
def test_bad_input_is_one_line(arguments, reason, capsys):
  assert compare.main(arguments) == compare.BAD_INPUT
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1 and reason in error


def test_help_says_how(capsys):
  assert compare.main(["--help"]) == 0
  assert "--methods=METHOD,METHOD" in capsys.readouterr().out
