"""How many CPU devices the program takes."""

import os

import jax
import pytest

from lrat_jax import models, sharding


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
  ("batch_sizes", "images_at_once", "devices"),
  [
    ((64,), None, 2),
    ((128, 256), 16, 8),
    ((128, 256), 196, 2),  # the images are so small that a core's are not too many
    ((48, 64), 16, 2),  # 3 would not split 64, and 4 would leave a device 12 of 48 images
    ((20,), 16, 1),
  ],
)
def test_one_device_a_core_and_more_where_their_images_would_be_too_many(taken, batch_sizes, images_at_once, devices):
  sharding.use_cpu_cores(*batch_sizes, images_at_once=images_at_once)
  assert taken == {"jax_num_cpu_devices": devices}


@pytest.mark.parametrize(
  "variable", [("JAX_NUM_CPU_DEVICES", "3"), ("XLA_FLAGS", "--xla_force_host_platform_device_count=3")]
)
def test_the_environments_number_stands(taken, monkeypatch, variable):
  monkeypatch.setenv(*variable)
  sharding.use_cpu_cores(128)
  assert not taken


def test_only_the_small_network_is_fed_in_small_batches():
  assert models.images_at_once("cnn", 28, 28) == 32
  assert models.images_at_once("cnn", 8, 8) == 392
  assert models.images_at_once("cnn", 512, 512) == 1
  assert models.images_at_once("resnet18", 32, 32) is None
