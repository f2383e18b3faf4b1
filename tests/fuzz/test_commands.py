"""The command line of compare: any words give a plan or a one-line error."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lrat_jax.compare import __main__ as compare
from lrat_jax.compare import methods
from lrat_jax.core.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True, scope="module")
def _in_the_root():
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(ROOT)
    yield


def lines_of(function, *arguments, **named):
  """The number of lines of the error; 0 if there is none."""
  try:
    function(*arguments, **named)
  except ConfigError as error:
    return len(str(error).splitlines())
  return 0


pieces = st.sampled_from(
  ["at", "lrat", "irat", ":", "+", "@", "=", "pgd", "cw", "beta", "1.0", "..", "/", ".py", "\n", ""]
)


@given(st.lists(pieces | st.text(max_size=5)).map("".join))
@example("at@beta=1e999")
@example("at@seed=5")
@example("at@name=../../x")
@example("at@=3")
@example("at@train_attacks.pgd.epsilon=8/0")
@example("at:pgd++cw")
@example("../configs/at")
@example("configs/at.py\n")
@example("at@" + "x" * 5000 + "=1")
def test_an_method_of_any_text_is_planned_inside_the_workdir_or_refused_in_one_line(text):
  def plan():
    return methods.plan([methods.parse(text)], [0], data="digits", suite="apgd", overrides=[], workdir=Path("w"))

  if lines_of(plan) == 0:
    (run,) = plan()
    assert run.workdir.resolve().is_relative_to(Path("w").resolve()) and len(run.method.folder) <= 200
  assert lines_of(plan) <= 1


words = st.sampled_from(
  ["--methods=at", "--methods=", "--methods=at,,irat", "--methods", "--seeds=0", "--seeds=", "--seeds=0,00",
   "--seeds=²", "--jobs=0", "--jobs=2", "--jobs=x", "--data=digits", "--data=", "--suite=", "--workdir=",
   "--config.beta=1", "--config.", "--config.seed=1", "--help=maybe", "--methods=\"at"]
)  # fmt: skip


@given(st.lists(words | st.text()))
@example(["--methods=at", "--seeds=²"])
@example(["--methods=at", "--seeds=" + "9" * 5000])
@example(["--methods=at", "--jobs=999999999999"])
@example(["--methods=at", "--workdir=a\0b"])
def test_any_words_are_understood_or_refused_in_one_line(arguments):
  assert lines_of(compare.parse, arguments) <= 1


@pytest.mark.parametrize(
  ("arguments", "reason"),
  [
    (["--methods=at", "--seeds=0,00"], "--seeds='0,00' contains an entry twice"),
    (["--methods=at", "--seeds=²"], "must be whole numbers"),
    (["--methods=at", "--seeds=4294967296"], "config.seed=4294967296 is outside"),
    (["--methods=at", "--jobs=1001"], "--jobs=1001 must be between 1 and 1000"),
    (["--methods=at@beta=1.0,at@beta:1.0"], "'at@beta:1.0' is not understood"),
    (["--methods=at@data.data_dir=a:b,at@data.data_dir=a_b"], "would share"),
    (["--methods=at@data.data_dir=" + "x" * 300], "is too long"),
  ],
)
def test_what_would_collide_or_cannot_be_is_refused_before_any_run(arguments, reason, tmp_path, capsys):
  assert compare.main([*arguments, "--suite=apgd", f"--workdir={tmp_path}/c"]) == compare.BAD_INPUT
  error = capsys.readouterr().err
  assert reason in error and error.count("\n") == 1 and not (tmp_path / "c").exists()
