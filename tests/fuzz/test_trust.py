"""Files that a run loads cannot run code: no pickle is opened, and the package has no code that would run them."""

import ast
import pickle
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from lrat_jax.core import files
from lrat_jax.data import npz_idx
from lrat_jax.training.checkpoints import Checkpoints, Progress
from tests.helpers import make_config, make_experiment, to_numpy

PACKAGE = Path(__file__).parent.parent.parent / "lrat_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
LOADERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def _runs_what_it_loads(node):
  """Whether a syntax node could run code from a file."""
  if isinstance(node, ast.Import | ast.ImportFrom):
    modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
    return any(module.partition(".")[0] in LOADERS for module in modules)
  if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
    return not (isinstance(node.value, ast.Constant) and node.value.value is False)
  if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
    return not any(keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True" for keyword in node.keywords)
  return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")


@pytest.mark.parametrize(
  "text",
  ["import pickle", "np.load(f, allow_pickle=x)", "eval(text)", "from dill import load", "torch.load(f)",
   "torch.load(f, weights_only=False)"],
)  # fmt: skip
def test_the_search_below_finds_what_it_looks_for(text):
  assert any(map(_runs_what_it_loads, ast.walk(ast.parse(text))))


def test_no_code_of_the_project_runs_what_it_loads():
  assert len(SOURCES) > 50
  for path in SOURCES:
    assert not any(map(_runs_what_it_loads, ast.walk(ast.parse(path.read_text())))), path


def test_one_file_imports_what_a_name_says():
  means = re.compile("import_module|resolve_name|__import__|runpy|exec_module|entry_points")
  found = {path.relative_to(PACKAGE).as_posix() for path in SOURCES if means.search(path.read_text())}
  # The other two import modules of this package only, by names written in these files.
  assert found == {"core/user_code.py", "__init__.py", "cli.py"}


@pytest.fixture
def no_pickle(monkeypatch):
  def refuse(*_, **__):
    raise AssertionError("a pickle was opened")

  for name in ("load", "loads", "Unpickler"):
    monkeypatch.setattr(pickle, name, refuse)


def test_checkpoints_and_arrays_are_read_without_pickle(tmp_path, no_pickle):
  state = make_experiment(make_config(model__name="cnn_4")).initial_state()
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(1, state, Progress({"next_index": 3}, False), None)
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    restored, _ = checkpoints.restore(1, state)
  jax.tree.map(np.testing.assert_array_equal, to_numpy(restored), to_numpy(state))
  np.savez(tmp_path / "a.npz", a=np.arange(3))
  assert files.read_arrays(tmp_path / "a.npz")["a"].tolist() == [0, 1, 2]
  assert npz_idx.read_npz(tmp_path / "a.npz", [["a"]])[0].tolist() == [0, 1, 2]


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
  state = make_experiment(make_config(model__name="cnn_4")).initial_state()
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, Progress({"next_index": 3}, False), None)
  saved = [path for path in tmp_path.rglob("*") if path.is_file()]
  assert len(saved) > 5
  for path in saved:
    assert path.suffix not in (".pkl", ".pickle") and not path.read_bytes().startswith(b"\x80")
