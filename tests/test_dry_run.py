"""A dry run: what it says, and that it leaves nothing."""

import re
import signal

import pytest

from lrat_jax import main, run
from tests import programs

pytestmark = pytest.mark.slow

ARGUMENTS = list(programs.RUN)


def test_a_dry_run_says_what_the_run_would_take_and_leaves_nothing(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert main.main([*ARGUMENTS, "--dry_run"]) == 0
  said = capsys.readouterr().out
  for words in (
    "1,100 train, 197 validation, 500 test images 8x8x1, 10 classes",
    "2 epochs of 17 = 34; batches [64, 8, 8, 1], 1 variant(s) a pair",
    "pgd: linf 0.2, 2 steps of 0.05",
    "at most 5 gradients and 0 queries per image",
    "1 epochs plain: ",
    "1 epochs local weights, global weights: ",
  ):
    assert words in said, said
  kernels = 9 * (4 + 16 + 32 + 64) + 32 * 16 + 16 * 10
  biases = 4 + 4 + 8 + 8 + 16 + 10
  assert f"cnn_4, {kernels + biases:,} parameters, computes in float32" in said
  assert re.search(r"Conv_2 +4x4x8 +296\n", said)
  assert re.search(
    r"time +about .+ of training, .+ of validation, at most .+ of evaluation, at least .+ of compilation", said
  )
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("more", "heard"), [(("--dry_run",), False), ((), True)])
def test_a_dry_run_ends_at_once_where_it_is_told_to(tmp_path, monkeypatch, more, heard):
  before, during = signal.getsignal(signal.SIGTERM), []
  monkeypatch.setattr(run, "_run_config", lambda *_: during.append(signal.getsignal(signal.SIGTERM)))
  main.main([*ARGUMENTS, f"--workdir={tmp_path}", *more])
  assert [handler != before for handler in during] == [heard]


def test_a_dry_run_shows_a_network_that_does_not_say_its_type(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  own = "--config.model.name=tests.user_functions:linear"
  arguments = [argument for argument in ARGUMENTS if ".model.name" not in argument]
  assert main.main([*arguments, own, "--config.train.epochs=1", "--dry_run"]) == 0
  said = capsys.readouterr().out
  assert re.search(r"tests.user_functions:linear, [\d,]+ parameters, computes in float32", said), said
