"""Plots are drawn in a thread: the run waits for them and raises their errors. Surrogates are loaded or refused."""

import json
import threading

import pytest

from lrat_jax import main, run

TRANSFER = [
  "--config=at:digits,suite=transfer",
  "--model=examples.plain_function:logits_fn",
  "--config.eval.num_images=60",
  "--config.eval.num_sanity_examples=0",
]
SURROGATE = "config.eval.suite.transfer.surrogate"


def test_pictures_are_drawn_beside_what_is_inside_and_waited_for():
  begun, may_end, drawn = threading.Event(), threading.Event(), []

  def draw():
    begun.set()
    assert may_end.wait(10)
    drawn.append(True)

  with run._drawing(draw) as wait:
    assert begun.wait(10) and not drawn
    may_end.set()
    wait()
    assert drawn


def test_a_picture_that_fails_is_the_runs_error():
  def fail():
    raise OSError("disk full")

  with pytest.raises(OSError, match="disk full"), run._drawing(fail) as wait:
    wait()


def test_without_pictures_there_is_nothing_to_wait_for():
  with run._drawing(None) as wait:
    wait()


@pytest.mark.slow
def test_an_attack_is_made_on_the_model_that_a_run_left(finished, tmp_path):
  assert main.main([*TRANSFER, f"--{SURROGATE}={finished}", f"--workdir={tmp_path}/transferred"]) == 0
  direct = f"--{SURROGATE}=examples.plain_function:logits_fn"
  assert main.main([*TRANSFER, direct, f"--workdir={tmp_path}/direct"]) == 0
  results = {name: json.loads((tmp_path / name / "results.json").read_text()) for name in ("transferred", "direct")}
  assert results["transferred"]["suite"]["transfer"]["surrogate"] == str(finished)
  assert results["direct"]["robust"]["transfer"] < results["transferred"]["robust"]["transfer"]


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("", "='' must name a file of weights, a run's workdir, or package.module:function"),
    ("nothing.pt", "=nothing.pt"),
    ("no_such_module:f", "='no_such_module:f': module 'no_such_module' cannot be imported"),
    ("jax.numpy:sum", "='jax.numpy:sum' returns float32 ()"),
  ],
)
def test_a_surrogate_that_is_no_model_is_one_line(name, message, tmp_path, capsys):
  assert main.main([*TRANSFER, f"--{SURROGATE}={name}", f"--workdir={tmp_path}/mine"]) == 2
  error = capsys.readouterr().err
  assert error.startswith(f"error: {SURROGATE}{message}") and error.count("\n") == 1
  assert not (tmp_path / "mine" / "results.json").exists()
