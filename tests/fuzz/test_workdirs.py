"""A workdir with damaged or swapped files: each is named in a one-line error, or its work is repeated."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lrat_jax.analysis import inspection
from lrat_jax.attacks.eval_state import FileStore
from lrat_jax.compare import methods, summary
from lrat_jax.core import files, provenance
from lrat_jax.core.errors import ConfigError
from lrat_jax.training import metrics
from lrat_jax.training import workdir as workdir_lib
from tests.helpers import make_config

ROOT = Path(__file__).parent.parent.parent
json_values = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "eval", "seed", "a"]), inner),
  max_leaves=6,
)
contents = st.binary(max_size=100) | json_values.map(lambda value: json.dumps(value).encode())
CONFIG = make_config("digits,suite=apgd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("run")


@given(contents)
@example(b"[" * 100_000)
@example(b"[]")
@example(b'"text"')
@example(b'{"data": 3, "eval": []}')
@example(b"\xff")
def test_a_config_json_of_any_content_is_refused_in_one_line(folder, content):
  (folder / "config.json").write_bytes(content)
  with pytest.raises(ConfigError) as refusal:
    workdir_lib.check(folder, CONFIG)
  assert len(str(refusal.value).splitlines()) == 1
  with pytest.raises(ValueError) as refusal:
    inspection.load_experiment(folder)
  assert len(str(refusal.value).splitlines()) == 1


def test_a_config_json_that_is_a_folder_and_a_name_too_long_are_one_line(tmp_path):
  (tmp_path / "config.json").mkdir()
  for workdir in (tmp_path, tmp_path / ("x" * 5000)):
    with pytest.raises(ConfigError, match=str(tmp_path)):
      workdir_lib.check(workdir, CONFIG)


ROWS = [json.dumps({"split": "train", "step": step, "epoch": 0}) for step in range(4)]


@given(st.integers(0, 3), contents.filter(lambda content: b"\n" not in content))
@example(1, b"")
@example(2, b"[" * 100_000)
@example(2, b'{"step": 3}')
@example(2, b'{"split": "train", "step": "3", "epoch": 0}')
@example(2, b"\0\0\0")
def test_metrics_that_are_damaged_are_named_by_their_line(folder, place, content):
  lines = [*map(str.encode, ROWS)]
  lines[place] = content
  (folder / "metrics.jsonl").write_bytes(b"\n".join(lines) + b'\n{"split": "tr')
  with pytest.raises(files.CorruptFileError, match=f"metrics.jsonl, line {place + 1} is damaged; remove that line"):
    metrics.read_rows(folder / "metrics.jsonl")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of a comparison, with invented results."""
  before = Path.cwd()
  os.chdir(ROOT)
  workdir = tmp_path_factory.mktemp("compare")
  (run,) = methods.plan([methods.parse("at")], [0], data="digits", suite="pgd", overrides=[], workdir=workdir)
  os.chdir(before)
  run.workdir.mkdir(parents=True)
  found = provenance.stamp() | {"config": workdir_lib.portable(run.config)}
  found |= {"clean": 0.5, "union": 0.5, "n": 4, "warnings": []}
  (run.workdir / "results.json").write_text(json.dumps(found))
  (run.workdir / "per_example.npz").write_bytes(_per_example(run))
  return run


def _per_example(run, **changes):
  names = [f"{field}/{name}" for name in run.config.eval.suite for field in ("robust", "vulnerability")]
  arrays = {name: np.array([0, 1, 0, 1]) for name in ("clean_correct", "robust", *names)}
  file = io.BytesIO()
  np.savez_compressed(file, **{name: array for name, array in (arrays | changes).items() if array is not None})
  return file.getvalue()


@given(contents | json_values.map(lambda value: json.dumps({"config": value, "clean": 1}).encode()))
@example(b'{"warnings": [3]}')
@example(b'{"clean": NaN}')
@example(b'{"n": "many"}')
def test_results_of_any_content_are_no_results(run, content):
  path = run.workdir / "results.json"
  whole = path.read_bytes()
  assert run.results() is not None
  path.write_bytes(content)
  assert run.results() is None
  changed = json.loads(content) if content.startswith(b'{"') and content.endswith(b"}") else {"clean": None}
  path.write_text(json.dumps(json.loads(whole) | {name: changed[name] for name in changed if name != "config"}))
  assert run.results() is None or not set(changed) & {"clean", "warnings", "n"}
  path.write_bytes(whole)


@given(st.integers(0, 10**6), st.integers(0, 7), st.booleans())
def test_arrays_that_are_damaged_are_one_line_or_still_the_same(run, place, bit, cut):
  content = bytearray(_per_example(run))
  content[place % len(content)] ^= 1 << bit
  content = content[: place % len(content)] if cut else content
  path = run.workdir / "per_example.npz"
  path.write_bytes(content)
  try:
    robust = summary.summarise([run], "x")["methods"]["at"]["mean"]
  except ValueError as error:
    assert len(str(error).splitlines()) == 1 and "per_example.npz is damaged" in str(error)
    assert "results.json to evaluate the run again" in str(error)
  else:
    assert set(robust.values()) == {0.5}
  path.write_bytes(_per_example(run))


def test_arrays_of_another_evaluation_or_of_objects_are_named(run, tmp_path):
  path = run.workdir / "per_example.npz"
  for changes, message in (
    ({"robust/fgsm": None}, r"it lacks the array 'robust/fgsm'"),
    ({"robust/fgsm": np.array([{}] * 4)}, "Object arrays cannot be loaded"),
  ):
    path.write_bytes(_per_example(run, **changes))
    with pytest.raises(files.CorruptFileError, match=message):
      run.per_example()
  path.write_bytes(_per_example(run))
  assert set(run.per_example()["robust"]) == {0, 1}


def test_recorded_weights_that_are_damaged_are_named(tmp_path):
  weights = tmp_path / "weights"
  weights.mkdir()
  (weights / "epoch_of_wonder.npz").write_bytes(b"")
  with pytest.raises(ValueError, match=r"contains no weights/epoch_\*.npz"):
    inspection.weight_history(tmp_path)
  (weights / "epoch_0000.npz").write_bytes(b"PK\3\4")
  with pytest.raises(files.CorruptFileError, match="epoch_0000.npz is damaged"):
    inspection.weight_history(tmp_path)
  record = metrics.WeightRecord(weights, np.arange(4), 4, ["pgd"], step=1)
  with pytest.raises(files.CorruptFileError, match="epoch_0000.npz is damaged"):
    record.add(0, 1, [])


@given(content=contents)
def test_a_half_done_evaluation_that_is_damaged_is_named_or_done_again(folder, content):
  store = FileStore(folder / "eval_progress")
  (folder / "eval_progress").mkdir(exist_ok=True)
  (folder / "eval_progress" / "0.npz").write_bytes(content)
  assert store.load("0") is None
  (folder / "eval_progress" / "fingerprint.json").write_bytes(content)
  with pytest.raises(ValueError, match="fingerprint.json is damaged; remove|contains an evaluation that differs in"):
    store.open({"seed": "0"})
