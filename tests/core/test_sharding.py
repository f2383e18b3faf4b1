"""How many CPU devices the program takes."""

import os

import jax
import pytest

from lrat_jax.core import sharding


@pytest.fixture
def taken(monkeypatch):
  """What `use_cpu_cores` tells JAX on a machine of two cores, in place of telling it."""
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
    ((48, 63), 1),  # 2 would not split 63
    ((20,), 1),  # 2 would leave a device 10 images
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
  assert "with 1 CPU device(s) where 2 would be faster" in sharding.use_cpu_cores(128)
  monkeypatch.setattr(jax, "local_device_count", lambda: 8)
  assert sharding.use_cpu_cores(128) == ""
