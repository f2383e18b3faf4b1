"""Where compiled programs are stored."""

import jax
import pytest

from lrat_jax import main, run
from tests import programs

pytestmark = pytest.mark.slow

ARGUMENTS = list(programs.RUN)


@pytest.fixture
def no_compilation_cache(monkeypatch):
  """JAX as if neither the environment nor the user had set the folder for compiled programs."""
  options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  before = {option: getattr(jax.config, option) for option in options}
  for option in options:
    monkeypatch.delenv(option.upper())
  jax.config.update("jax_compilation_cache_dir", None)
  yield
  for option, value in before.items():
    jax.config.update(option, value)


@pytest.mark.parametrize(
  ("arguments", "folder"),
  [
    ([], "{tmp_path}/runs/compilation_cache"),
    (["--config.compilation_cache={tmp_path}/elsewhere"], "{tmp_path}/elsewhere"),
    (["--config.compilation_cache=off"], None),
  ],
)
def test_compiled_programs_are_kept_beside_the_workdir_or_where_one_says(
  no_compilation_cache, tmp_path, arguments, folder
):
  (tmp_path / "runs" / "a" / "checkpoints").mkdir(parents=True)  # so that the program gets as far as looking for one
  arguments = [argument.format(tmp_path=tmp_path) for argument in arguments]
  assert main.main([*ARGUMENTS, f"--workdir={tmp_path}/runs/a", "--mode=evaluate", *arguments]) == 2
  assert jax.config.jax_compilation_cache_dir == (folder and folder.format(tmp_path=tmp_path))


def test_programs_of_less_than_a_second_are_kept_unless_the_environment_says_otherwise(
  no_compilation_cache, monkeypatch, tmp_path
):
  run._keep_compiled("auto", tmp_path)
  assert jax.config.jax_persistent_cache_min_compile_time_secs < 0.5
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "3")
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 3.0)
  run._keep_compiled("auto", tmp_path)
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 3.0
