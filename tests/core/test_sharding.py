"""How many CPU devices the program uses, and how arrays are gathered from several devices."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lrat_jax.core import hlo, sharding
from lrat_jax.core.errors import ConfigError


@pytest.fixture
def taken(monkeypatch):
  """Records the JAX configuration that `use_cpu_cores` sets on a machine with two cores; it is not applied."""
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
  monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  told = {}
  monkeypatch.setattr(jax.config, "update", told.__setitem__)
  return told


@pytest.mark.parametrize(
  ("batch_sizes", "devices"),
  [
    ((64,), 2),
    ((128, 256), 2),
    ((48, 63), 1),  # 63 cannot be split over 2
    ((20,), 1),  # with 2, a device would have only 10 images
  ],
)
def test_one_device_a_core_as_far_as_batches_split(taken, batch_sizes, devices):
  sharding.use_cpu_cores(*batch_sizes)
  assert taken == {"jax_num_cpu_devices": devices}


@pytest.mark.parametrize(
  "variable", [("JAX_NUM_CPU_DEVICES", "3"), ("XLA_FLAGS", "--xla_force_host_platform_device_count=3")]
)
def test_the_environments_number_stands(taken, monkeypatch, variable):
  monkeypatch.setenv(*variable)
  sharding.use_cpu_cores(128)
  assert not taken


def test_jax_that_runs_already_is_used_as_it_is_and_a_line_says_what_it_costs(taken, monkeypatch):
  def refuse(*_):
    raise RuntimeError("jax_num_cpu_devices config should be updated before backends are initialized")

  monkeypatch.setattr(jax.config, "update", refuse)
  monkeypatch.setattr(jax, "local_device_count", lambda: 1)
  assert "with 1 CPU device where 2 would be faster" in sharding.use_cpu_cores(128)
  monkeypatch.setattr(jax, "local_device_count", lambda: 8)
  assert sharding.use_cpu_cores(128) == ""


def test_arrays_of_any_type_come_from_all_devices_by_one_all_gather():
  mesh = sharding.make_mesh(4)
  generator = np.random.default_rng(0)
  arrays = [
    generator.normal(size=(8, 3, 2)).astype(np.float32),
    generator.integers(-9, 9, (12,), np.int32),
    generator.random((4, 5)) > 0.5,
    generator.integers(0, 255, (8, 1), np.uint8),
    jnp.asarray(generator.normal(size=(4, 2)), jnp.bfloat16),
  ]
  split = [jax.device_put(array, NamedSharding(mesh, sharding.BATCHED)) for array in arrays]
  for found, array in zip(sharding.gather(split), arrays, strict=True):
    assert found.dtype == array.dtype and found.tobytes() == np.asarray(array).tobytes() and found.shape == array.shape
  text = sharding.make_pack(split[0].sharding).lower(*split).compile().as_text()
  assert hlo.collectives(text) == {"all-gather": 1}


def test_memory_that_is_too_small_names_the_field():
  mesh = sharding.make_mesh(1)
  for error in (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), MemoryError("none")):
    with (
      pytest.raises(ConfigError, match=r"^config.x=9 is too large for the memory of .*; lower it\.$"),
      sharding.memory_for("config.x", 9, mesh),
    ):
      raise error
  with pytest.raises(jax.errors.JaxRuntimeError, match="else"), sharding.memory_for("config.x", 9, mesh):
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")


OLD_CPU_OPTIONS = {
  "xla_cpu_use_fusion_emitters": False,
  "xla_cpu_parallel_codegen_split_count": sharding.num_cores(),
  "xla_cpu_prefer_vector_width": 512,
}


@pytest.mark.parametrize(
  ("version", "platform", "options"),
  [
    ("0.10.2", "cpu", OLD_CPU_OPTIONS),
    ("0.11.2", "cpu", None),  # it fails with an option that it does not know
    ("0.10.2", "gpu", None),
  ],
)
def test_the_older_code_generator_is_asked_for_where_it_exists(monkeypatch, version, platform, options):
  mesh, asked = sharding.make_mesh(1), []
  monkeypatch.setattr(sharding.jaxlib, "__version__", version)
  monkeypatch.setattr(sharding, "platform", lambda _: platform)
  monkeypatch.setattr(jax, "jit", lambda function, **options: asked.append(options))
  sharding.jit(abs, mesh, donate_argnums=0)
  assert asked == [{"donate_argnums": 0, "compiler_options": options}]


def test_programs_for_a_mesh_compile_with_the_jax_that_is_here():
  assert sharding.jit(lambda x: x + 1, sharding.make_mesh(1))(jnp.float32(1)) == 2
