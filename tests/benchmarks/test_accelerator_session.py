"""The accelerator session: its plan, counts and files, and which results remain if a part fails or is stopped."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.accelerator_session import __main__ as command
from benchmarks.accelerator_session import evaluation, flops, table, training, weights
from benchmarks.accelerator_session.session import METHODS, TRIAL, Session, read_records
from lrat_jax import models
from lrat_jax.config.default import PRESETS

ROOT = Path(__file__).parent.parent.parent


def _session(folder, part="training"):
  out, scratch = folder / "out", folder / "scratch"
  out.mkdir()
  scratch.mkdir()
  return Session(part, str(out), str(scratch), "digits", "", True, time.time() + 60, "")


def test_the_plan_drops_the_last_methods_before_it_goes_below_the_least_epochs():
  epoch_seconds = {"at": 4.0, "lrat": 6.0}  # half of the epochs are adversarial training
  wanted = ["at", "lrat", "gairat", "lrat_gairat"]
  plan = lambda seconds, wanted=wanted: training.plan(wanted, seconds, 10.0, epoch_seconds, 8, 30)
  assert plan(10_000.0) == (wanted, 30)
  methods, epochs = plan(300.0)
  used = 10.0 * (1 + 3 * training._LATER_PROGRAMS) + epochs * (4 + 5 + 4 + 5) / training._USED
  assert methods == wanted and epochs >= 8 and 300 - 18 / training._USED < used <= 300
  assert plan(120.0)[0] == ["at", "lrat"] and plan(120.0)[1] >= 8
  assert plan(1.0) == (["at"], 8)
  union, epochs = plan(400.0, ["at_union", "lrat_union"])  # three attacks in a step
  used = 10.0 * (1 + training._LATER_PROGRAMS) + epochs * 3 * (4 + 5) / training._USED
  assert union == ["at_union", "lrat_union"] and 400 - 27 / training._USED < used <= 400


@pytest.mark.parametrize("preset", ["digits", "cifar10"])
def test_a_union_of_norms_is_attacked_in_each_and_other_methods_in_theirs_alone(preset):
  budget = PRESETS[preset]["budget"]
  alone = evaluation.suite(TRIAL, preset, ["at", "lrat"])
  union = evaluation.suite(TRIAL, preset, ["at", "lrat_union"])
  assert {entry["norm"] for _, entry in alone.values()} == {"linf"}
  radii = {entry["norm"]: entry["epsilon"] for name, (_, entry) in union.items() if name.startswith("apgd")}
  assert radii == {norm: budget[norm][0] for norm in ("linf", "l2", "l1")}
  session = Session("training", "", "", "digits" if preset == "digits" else "tfds:cifar10", "", True, 0.0, "")
  for method in METHODS:
    attacks = training._config(session, method, 1).train_attacks
    assert {attack.norm for attack in attacks.values()} == ({"linf", "l2", "l1"} if "union" in method else {"linf"})
    assert {attack.num_steps for attack in attacks.values()} == {TRIAL.num_steps}


def test_operations_of_a_convolution_a_product_and_a_function_that_is_called():
  x, kernel, dense = jnp.zeros((1, 8, 8, 3)), jnp.zeros((3, 3, 3, 5)), jnp.zeros((5, 7))

  def network(x):
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=dimensions)
    return jax.jit(lambda y: jnp.mean(y, axis=(1, 2)) @ dense)(y)

  assert flops.count(network, x) == 2 * (4 * 4 * 5) * (3 * 3 * 3) + 2 * 5 * 7


@pytest.mark.slow
def test_weights_in_several_files_are_read_as_they_were_rounded(tmp_path):
  module = models.create("resnet18_4", 10, mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.2))
  images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
  variables = module.init(jax.random.key(0), images)
  paths = weights.save(tmp_path, "lrat", module, variables, 60_000, step=3)
  assert len(paths) > 1 and all(path.stat().st_size < 80_000 for path in paths)
  (name,) = weights.names(tmp_path)
  loaded = weights.load(tmp_path, name)
  rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), variables)
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, rounded)
  np.testing.assert_allclose(loaded.logits_fn(images), module.apply(rounded, images), atol=1e-5)
  paths[0].unlink()
  assert weights.names(tmp_path) == []


def test_what_fails_in_a_part_is_a_record_and_the_part_goes_on(tmp_path, capsys):
  session = _session(tmp_path)

  def fail():
    raise RuntimeError("out of\nmemory")

  assert session.attempt("a step", fail) is None
  assert session.attempt("another", lambda: 5) == 5
  assert session.records("What failed") == [
    {"part": "training", "what": "a step", "why": "RuntimeError: out of memory"}
  ]
  assert "out of" in capsys.readouterr().err
  table.write(tmp_path / "out", tmp_path / "scratch", "A title", True, [{"part": "training"}])
  assert "| training | a step | RuntimeError: out of memory |" in (tmp_path / "out/table.md").read_text()
  assert json.loads((tmp_path / "out/records.json").read_text())["trial"] is True


def test_a_record_that_was_cut_off_is_passed_over(tmp_path):
  session = _session(tmp_path)
  session.record("Speed", images=3)
  with (tmp_path / "scratch/records.jsonl").open("a") as file:
    file.write('{"part": "speed", "tab')
  assert [record["row"] for record in read_records(tmp_path / "scratch")] == [{"images": 3}]


def test_a_part_without_what_it_needs_and_one_without_time_are_lines(tmp_path):
  arguments = ["--minutes=0.15", f"--out={tmp_path}/out", f"--scratch={tmp_path}/scratch", "--parts", "correctness"]
  command.run(command._options([*arguments, "training"]))
  text = (tmp_path / "out/table.md").read_text()
  assert "| left out: no time was left |" in text
  assert "| left out: no --data_dir |" in text


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_session_leaves_its_tables_and_no_process(tmp_path, stop):
  arguments = ["--trial", "--minutes=5", f"--out={tmp_path}/out", f"--scratch={tmp_path}/scratch"]
  process = subprocess.Popen([sys.executable, "-m", "benchmarks.accelerator_session", *arguments], cwd=ROOT)
  records = tmp_path / "scratch/records.jsonl"
  for _ in range(600):
    if records.exists() and (tmp_path / "out/table.md").exists() and "Does it run" in records.read_text():
      break
    time.sleep(0.1)
  time.sleep(1.5)  # the table is updated from the records twice a second
  process.send_signal(stop)
  process.wait(timeout=20)
  assert "## Does it run" in (tmp_path / "out/table.md").read_text()
  for _ in range(50):
    found = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _command_line(path)]
    if not found:
      return
    time.sleep(0.1)
  raise AssertionError(f"still there: {found}")


def _command_line(path):
  try:
    return path.read_bytes()
  except OSError:  # the process has just ended
    return b""


@pytest.mark.parametrize(
  "arguments, word",
  [
    (["--trial"], "either --out=DIR"),
    (["--load=/nowhere"], "holds no records.json"),
    (["--out=x", "--auto_attack=/nowhere"], "holds no folder autoattack"),
    (["--out=x", "--minutes=0.01"], "is no time"),
  ],
)
def test_wrong_arguments_are_one_line(arguments, word, capsys):
  with pytest.raises(SystemExit) as stopped:
    command._options(arguments)
  assert stopped.value.code == 2 and word in capsys.readouterr().err
