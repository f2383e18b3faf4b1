"""Models by their Python name: the examples, and a one-line error for each invalid name or model."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from lrat_jax import data, main
from lrat_jax.models import user_model

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = {
  "plain_function": "logits_fn",
  "flax_linen": "make_model",
  "flax_nnx": "make_model",
  "equinox_mlp": "make_model",
  "haiku_mlp": "make_model",
}
FAST = [
  f"--config={ROOT}/configs/at.py:digits,suite=pgd",
  "--config.eval.batch_size=128",
  "--config.eval.suite.cw20.num_steps=2",
]
FAST += ["--config.eval.suite.pgd20.num_steps=2", "--config.eval.num_images=60", "--config.eval.num_sanity_examples=0"]
MODULE = """
import jax
import jax.numpy as jnp
import numpy as np
number = 3
def fails(images): raise RuntimeError("out of order")
def wrong_shape(images): return jnp.zeros((images.shape[0], 4))
def integers(images): return jnp.zeros((images.shape[0], 10), jnp.int32)
def not_finite(images): return jnp.zeros((images.shape[0], 10)) * jnp.nan
def late(images): return jnp.where(images[:, 0, 3, :1] > 0.9, jnp.nan, jnp.arange(10.0) + images.mean())
def factory(): return wrong_shape
def broken_factory(): raise OSError("no weights")
def host(images): return float(images[0, 0, 0, 0])
def _linear(images): return images.reshape(images.shape[0], -1) @ jnp.cos(jnp.arange(640.0)).reshape(64, 10)
def one_output(images): return _linear(images)[:, :1]
def a_tuple(images): return _linear(images), 1
def two_arguments(images, labels): return _linear(images)
def made_for_two(images): return _linear(images.reshape(2, -1))
def half(images): return _linear(images).astype(jnp.bfloat16)
def by_its_batch(images): return _linear(images - images.mean(axis=0))
def in_a_callback(images):
  def fails_later(images):
    if len(images) > 2: raise RuntimeError("no more images")
    return np.zeros((len(images), 10), np.float32)
  return jax.pure_callback(fails_later, jax.ShapeDtypeStruct((len(images), 10), np.float32), images)
"""


@pytest.fixture(scope="module", autouse=True)
def bad_models(tmp_path_factory):
  """Modules of models that cannot be evaluated, or are unusual."""
  folder = tmp_path_factory.mktemp("modules")
  (folder / "bad_models.py").write_text(MODULE)
  (folder / "bad_exit.py").write_text("import sys; sys.exit(5)")
  (folder / "bad_syntax.py").write_text("def logits_fn(images:\n")
  sys.path.insert(0, str(folder))
  yield
  sys.path.remove(str(folder))


@pytest.mark.parametrize("module", EXAMPLES)
def test_every_example_is_a_model_of_the_digits(module):
  logits_fn = user_model.find(f"examples.{module}:{EXAMPLES[module]}")
  test = data.load("digits", validation_size=197).test
  logits_fn, num_classes = user_model.checked(module, logits_fn, test.images[:2])
  assert num_classes == 10
  assert np.mean(np.asarray(logits_fn(test.images)).argmax(axis=1) == test.labels) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("module", EXAMPLES)
def test_every_example_is_evaluated(module, tmp_path, capsys):
  name = f"examples.{module}:{EXAMPLES[module]}"
  assert main.main([*FAST, f"--model={name}", f"--workdir={tmp_path}/mine"]) == 0
  results = json.loads((tmp_path / "mine" / "results.json").read_text())
  assert results["name"] == results["model"] == name and results["n"] == 60 and "step" not in results
  assert results["clean"] > 0.85 > results["union"]
  left = {path.name for path in (tmp_path / "mine").iterdir()}
  assert left == {".lock", "results.json", "timings.json", "per_example.npz", "worst_examples.npz", "plots"}
  assert f"{name} on 60 test images" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("examples.plain_function", "is not understood; write package.module:function"),
    ("no_such_module:f", "module 'no_such_module' cannot be imported .*No module named"),
    ("bad_syntax:f", r"module 'bad_syntax' cannot be imported \(SyntaxError"),
    ("bad_exit:f", r"module 'bad_exit' cannot be imported \(SystemExit: 5\)"),
    ("bad_models:one_output", r"returns float32 \(2, 1\)"),
    ("bad_models:a_tuple", "returns tuple for images"),
    ("bad_models:two_arguments", "missing 1 required positional argument: 'labels'"),
    ("bad_models:made_for_two", r"failed on images \(\d+, 8, 8, 1\) under jax.jit \(TypeError"),
    ("bad_models:nothing", "module 'bad_models' has no 'nothing'"),
    ("bad_models:number", "is int, not a function from images to logits"),
    ("bad_models:fails", r"failed on images \(2, 8, 8, 1\) under jax.jit \(RuntimeError: out of order\)"),
    ("bad_models:host", "under jax.jit .*ConcretizationTypeError"),
    ("bad_models:wrong_shape", r"returns float32 \(2, 4\) .*; it must return float logits \(2, 10\)"),
    ("bad_models:factory", r"returns float32 \(2, 4\)"),
    ("bad_models:integers", "returns int32"),
    ("bad_models:not_finite", "returns logits that are NaN or infinite"),
    ("bad_models:late", r"invalid logits for image \d+ \(\d+ in all\)"),
    ("bad_models:broken_factory", r"failed when it was called to create the model \(OSError: no weights\)"),
  ],
)
def test_what_is_no_model_is_one_line_and_exit_code_2(name, message, tmp_path, capsys):
  assert main.main([*FAST, f"--model={name}", f"--workdir={tmp_path}/mine"]) == 2
  error = capsys.readouterr().err
  assert re.fullmatch(rf"error: .*{message}.*\n", error), error
  assert not (tmp_path / "mine" / "results.json").exists()


def test_a_model_that_fails_as_it_runs_is_one_line(tmp_path, capsys, caplog):
  assert main.main([*FAST, "--model=bad_models:in_a_callback", f"--workdir={tmp_path}/mine"]) == 2
  error = capsys.readouterr().err
  assert error.splitlines()[-1] == "error: --model='bad_models:in_a_callback' failed while running: no more images"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "warning"), [("half", None), ("by_its_batch", "two predictions to an image differ")])
def test_a_model_that_is_odd_is_evaluated(name, warning, tmp_path):
  checked = [*FAST[:-1], "--config.eval.num_sanity_examples=16"]
  assert main.main([*checked, f"--model=bad_models:{name}", f"--workdir={tmp_path}/mine"]) == 0
  warnings = json.loads((tmp_path / "mine" / "results.json").read_text())["warnings"]
  assert warning is None or any(warning in line for line in warnings)


def test_a_model_is_not_trained_and_does_not_evaluate_into_a_run(tmp_path, capsys):
  model = "--model=examples.plain_function:logits_fn"
  assert main.main([*FAST, model, "--mode=train", f"--workdir={tmp_path}/mine"]) == 2
  assert "--mode=train cannot be used with --model" in capsys.readouterr().err
  assert main.main([*FAST, model, "--config.eval.checkpoint=last", f"--workdir={tmp_path}/mine"]) == 2
  assert "config.eval.checkpoint='last' is only for a run's checkpoints, not for --model" in capsys.readouterr().err
  (tmp_path / "run" / "checkpoints").mkdir(parents=True)
  assert main.main([*FAST, model, f"--workdir={tmp_path}/run"]) == 2
  assert "contains a training run; use another --workdir for --model" in capsys.readouterr().err
