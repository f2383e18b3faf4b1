"""The report program from the command line: where the page is written, exit codes, and one-line errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lrat_jax.report import __main__ as program

ROOT = Path(__file__).parent.parent.parent


def _fails(arguments, capsys, code=program.BAD_INPUT):
  assert program.main([str(argument) for argument in arguments]) == code
  line = capsys.readouterr().err
  assert line.startswith("error: ") and line.count("\n") == 1
  return line


def test_the_page_lies_in_the_workdir_or_where_one_says(copy, tmp_path, capsys):
  workdir = copy()
  assert program.main([str(workdir)]) == 0
  assert "report.html" in capsys.readouterr().out
  content = (workdir / "report.html").read_bytes()
  assert program.main([str(workdir), f"--output={tmp_path}/page.html"]) == 0
  assert (tmp_path / "page.html").read_bytes() == content and len(content) < 2e6


def test_several_runs_make_a_page_where_one_stands(copy, tmp_path, monkeypatch):
  workdirs = [copy("first"), copy("second", results={"seed": 1}, config={"seed": 1})]
  monkeypatch.chdir(tmp_path)
  assert program.main([path.name for path in workdirs]) == 0
  assert (tmp_path / "report.html").exists()


def test_bad_input_is_one_line(copy, tmp_path, capsys):
  assert "no run is given" in _fails([], capsys)
  assert "is not a directory" in _fails([tmp_path / "nowhere"], capsys)
  assert "is not a run: it contains neither config.json nor results.json" in _fails([tmp_path], capsys)
  (tmp_path / "comparison.json").write_text("{}")
  assert f"pass its runs: {tmp_path}/*/seed*" in _fails([tmp_path], capsys)
  assert "must end in .html" in _fails([tmp_path, "--output=page.pdf"], capsys)
  assert "Unknown command line flag" in _fails([tmp_path, "--outputs=page.html"], capsys)
  assert "No such file" in _fails([copy(), f"--output={tmp_path}/none/page.html"], capsys, program.FILES_FAILED)


@pytest.mark.parametrize(
  ("name", "change", "said"),
  [
    ("results.json", {"clean": "much"}, "clean: 'much' is not of type 'number'"),
    ("results.json", {"robust": {"pgd20": 2}}, "robust.pgd20: 2 is greater than the maximum"),
    ("results.json", {"suite": {"pgd20": {"name": "pgd"}}}, "suite."),
    ("results.json", {"n": 499}, "is not a column of 499 numbers"),
    ("results.json", {"autoattack": {"mine": []}}, "autoattack.mine is not one of the attacks"),
    ("timings.json", {"attack_seconds": None}, "attack_seconds: None is not of type 'object'"),
    ("config.json", {"name": "<script>"}, "contains no configuration of this version: config.name='<script>'"),
    ("config.json", {"new_field": 1}, "config.new_field is unknown"),
  ],
)
def test_a_damaged_file_is_named(copy, capsys, name, change, said):
  path = copy() / name
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  line = _fails([path.parent], capsys)
  assert said in line and str(path.parent) in line


def test_damaged_records_are_named(copy, capsys):
  workdir = copy()
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"split": "train", "step": 1, "epoch": 1, "steps": 1}\n')
  assert "metrics.jsonl, line" in _fails([workdir], capsys)
  for name in ("per_example.npz", "worst_examples.npz", "weights/epoch_0000.npz"):
    workdir = copy(name.replace("/", "_"))
    (workdir / name).write_bytes(b"PK\x03\x04 no archive")
    assert Path(name).name in _fails([workdir], capsys)


def test_help_names_the_exit_codes(capsys):
  assert program.main(["--help"]) == 0
  assert "Exit codes:" in capsys.readouterr().out


@pytest.mark.slow
def test_the_module_runs(tmp_path):
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-m", "lrat_jax.report", str(tmp_path)]
  ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
  assert ended.returncode == 2 and "is not a run" in ended.stderr and ended.stderr.count("\n") == 1


def test_folders_that_are_no_run_are_left_out_of_a_pattern(copy, tmp_path, capsys):
  workdirs = [copy("a"), tmp_path / "compilation_cache"]
  workdirs[1].mkdir()
  assert program.main([*map(str, workdirs), f"--output={tmp_path}/page.html"]) == 0
  assert "compilation_cache is not a run and is left out." in capsys.readouterr().out.replace("\n", " ")
  assert program.main([str(workdirs[1])]) == 2 and "is not a run" in capsys.readouterr().err
