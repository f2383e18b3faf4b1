"""Programs compiled for devices that are not available: counts, output, and that the TPU compiler accepts them."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from lrat_jax import main
from lrat_jax.convolutions.conv2d import conv2d
from lrat_jax.core import sharding, topologies
from lrat_jax.training import rehearsal
from tests.helpers import make_config, make_experiment


def _count(function, *args, platform="tpu"):
  return rehearsal.flops(jax.make_jaxpr(function)(*args).jaxpr, platform)


def test_a_product_counts_two_operations_and_a_loops_as_often_as_it_runs():
  x, matrix = jnp.ones((5, 7)), jnp.ones((7, 7))
  assert _count(jnp.matmul, x, matrix) == 2 * 5 * 7 * 7
  assert _count(lambda x: lax.fori_loop(0, 11, lambda _, x: jnp.tanh(x @ matrix), x), x) == 11 * 2 * 5 * 7 * 7
  assert _count(jax.jit(jax.checkpoint(lambda x: x @ matrix)), x) == 2 * 5 * 7 * 7
  branches = (lambda x: x, lambda x: x @ matrix, lambda x: x @ matrix @ matrix)
  assert _count(lambda i, x: lax.switch(i, branches, x), 0, x) == 2 * 2 * 5 * 7 * 7


def test_a_convolution_counts_its_kernel_for_every_result_on_the_platform_that_is_asked_for():
  x, kernel = jnp.ones((2, 9, 9, 32)), jnp.ones((3, 3, 32, 40))
  plain = 2 * (2 * 9 * 9 * 40) * (3 * 3 * 32)
  assert _count(conv2d, x, kernel) == plain
  assert _count(conv2d, x, kernel, platform="cpu") < plain  # Winograd's method
  grouped = lambda x: lax.conv_general_dilated(
    x, jnp.ones((3, 3, 1, 32)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=32
  )
  assert _count(grouped, x) == 2 * (2 * 9 * 9 * 32) * 9


def test_what_is_mapped_over_devices_counts_for_one_of_them():
  split = PartitionSpec(sharding.AXIS)
  mapped = sharding.shard_map(lambda x: x @ jnp.ones((7, 3)), sharding.make_mesh(2), split, split)
  assert _count(mapped, jnp.ones((4, 7))) == 2 * 2 * 7 * 3


@pytest.fixture(scope="module")
def rehearsed():
  config = make_config(
    "digits", model__name="wide_resnet_10_1", train__epochs=2, data__batch_size=16, eval__batch_size=32
  )
  config.local_weights.kind = "lrat"
  config.train_attacks.pgd.num_steps = config.validation_attack.num_steps = 2
  experiment = make_experiment(config, num_devices=2)
  return experiment, list(rehearsal.programs(experiment))


def test_the_step_of_every_phase_and_the_attack_are_compiled(rehearsed):
  _, found = rehearsed
  assert [program.name for program in found] == ["step, plain", "step, local weights", "validation attack"]
  assert [program.images for program in found] == [16, 16, 32]
  assert found[0].flops < found[1].flops  # this loss also uses natural images


def test_a_device_holds_the_state_and_its_share_of_the_batch(rehearsed):
  experiment, found = rehearsed
  size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
  key = 8  # bytes of the attack's key; there is no augmentation
  assert found[0].arguments == size(experiment.abstract_state()) + key + 8 * (64 * 4 + 4 + 4)


def test_collectives_are_outside_of_the_attacks_loop(rehearsed):
  _, found = rehearsed
  # One for each of 7 batch norms, forward and backward, and one for the gradient.
  assert found[0].outside.keys() == {"all-reduce"} and 1 < found[0].outside["all-reduce"] <= 15
  assert not found[0].inside and not found[-1].outside and not found[-1].inside


def test_nothing_is_placed_or_run(monkeypatch):
  experiment = make_experiment(make_config("digits", model__name="cnn_2", train__epochs=1))
  monkeypatch.setattr(jax, "device_put", lambda *args, **kwargs: pytest.fail("an array was placed"))
  monkeypatch.setattr(jax.stages.Compiled, "__call__", lambda *args, **kwargs: pytest.fail("a program was run"))
  assert len(list(rehearsal.programs(experiment))) == 2


ARGUMENTS = ["--config=at:digits", "--config.model.name=cnn_2", "--config.train.epochs=1"]


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["--topology=v5e:2x4"], "--dry_run"),
    (["--dry_run", "--topology=v5e"], "v5e:4x4"),
    (["--dry_run", "--topology=v5e:2x4"], "pip install 'jax[tpu]'"),
  ],
)
def test_what_cannot_be_rehearsed_is_one_line(monkeypatch, tmp_path, capsys, arguments, said):
  def missing(**_):
    raise RuntimeError("JAX TPU support not installed")

  monkeypatch.setattr(topologies.topologies, "get_topology_desc", missing)
  for variable in topologies.LIBTPU:
    monkeypatch.setenv(variable, "as it was")  # so that monkeypatch restores it
  assert main.main([*ARGUMENTS, *arguments, f"--workdir={tmp_path / 'run'}"]) == 2
  error = capsys.readouterr().err.strip()
  assert said in error and "\n" not in error and not (tmp_path / "run").exists()


def test_a_batch_that_the_topology_cannot_share_is_refused(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(topologies, "described_mesh", lambda name, model_devices: sharding.make_mesh(2))
  arguments = ["--config.data.batch_size=33", "--dry_run", "--topology=v5e:2x4", f"--workdir={tmp_path / 'run'}"]
  assert main.main([*ARGUMENTS, *arguments]) == 2
  assert "config.data.batch_size=33" in capsys.readouterr().err


@pytest.fixture(scope="module")
def with_libtpu(tmp_path_factory):
  """The environment of a process that finds libtpu; only there, because JAX looks for TPUs if libtpu is installed."""
  if importlib.util.find_spec("libtpu"):
    return os.environ
  folder = tmp_path_factory.mktemp("libtpu")
  needed = [r.split(";")[0] for r in importlib.metadata.requires("jax") if r.startswith("libtpu")]
  pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(folder)]
  subprocess.run([*pip, *needed], check=True)
  return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def _rehearse(environment, folder, *fields):
  """The output of a rehearsal for eight chips, as a function: a line's first word -> the rest of all these lines."""
  arguments = [*fields, "--config.model.name=resnet18_2", "--dry_run", "--topology=v5e:2x4"]
  command = [sys.executable, "-m", "lrat_jax.main", *arguments]
  done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
  return lambda name: [text for first, text in lines if first == name]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("fields", "between"),
  [
    ((), "1 all-reduce"),
    (
      ("--config.mesh.model_devices=4", "--config.mesh.shard_above=1000"),
      r"\d+ all-gather, \d+ all-reduce(, \d+ reduce-scatter)?",  # the compiler does not scatter small sums
    ),
  ],
)
def test_on_tpus_a_step_with_local_batch_norm_joins_its_gradients_and_nothing_else(
  with_libtpu, tmp_path, fields, between
):
  fields = ("--config=at:digits", "--config.train.epochs=1", "--config.model.batch_norm=local", *fields)
  step, attack = _rehearse(with_libtpu, tmp_path, *fields)("between")
  assert re.fullmatch(f"{between}; in loops no collective", step)
  assert attack == "no collective; in loops no collective"


@pytest.mark.slow
def test_the_tpus_compiler_takes_the_step(with_libtpu, tmp_path):
  said = _rehearse(with_libtpu, tmp_path, "--config=lrat:digits", "--config.train.epochs=2")
  assert said("devices") == ["8 TPU v5 lite of 17.2 GB"]
  assert [text.partition(":")[0] for text in said("program")] == [
    "step, plain",
    "step, local weights",
    "validation attack",
  ]
  assert all(text.endswith("in loops no collective") for text in said("between"))
  assert "all-reduce" in said("between")[0] and "all-reduce" not in said("between")[2]
  assert not list(tmp_path.iterdir())


def test_the_chips_share_of_memory_and_peak_are_of_the_data_sheet(monkeypatch, rehearsed):
  experiment, found = rehearsed
  monkeypatch.setattr(topologies, "chip", lambda mesh: topologies.Chip(2.0 * found[0].memory, 1e9, 1e9))
  monkeypatch.setattr(rehearsal, "programs", lambda experiment: found[:1])
  monkeypatch.setattr(rehearsal.experiment_lib, "compute_type", lambda dtype, mesh: "bfloat16")
  console = rehearsal.Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
  rehearsal.describe(experiment, console)
  text = console.export_text()
  rate = 16 / (found[0].flops / 1e9)
  assert "50% of its memory" in text and f"at most {rate:,.0f} images/s" in text
  assert np.isfinite(rate)
