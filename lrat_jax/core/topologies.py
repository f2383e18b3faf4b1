"""Descriptions of TPU devices that are not present: PyPI's libtpu compiles programs for them on any machine."""

import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from lrat_jax.core import sharding
from lrat_jax.core.errors import ConfigError


class Chip(NamedTuple):
  """Specifications of a kind of device, from Google's pages (cloud.google.com/tpu/docs/system-architecture-tpu-vm).

  Attributes:
    memory: bytes of HBM.
    flops: peak bfloat16 operations per second.
    bandwidth: peak bytes per second between HBM and the cores.
  """

  memory: float
  flops: float
  bandwidth: float


# By JAX's `device_kind`. v4 and older are left out: they are described per core, not per chip.
CHIPS = {
  "TPU v5 lite": Chip(16 * 2**30, 197e12, 819e9),
  "TPU v5": Chip(95 * 2**30, 459e12, 2765e9),
  "TPU v6 lite": Chip(32 * 2**30, 918e12, 1640e9),
}
# Settings of libtpu: where it runs (otherwise it asks Google's metadata server); that several processes may load it,
# because no device is used; and its log level.
LIBTPU = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_STDERR_LOG_LEVEL": "3",
}
_NAME = re.compile(r"v\d+[a-z]?:\d+x\d+(x\d+)?")


def described_mesh(name: str, model_devices: int = 1) -> Mesh:
  """`sharding.mesh_over` the devices of a topology such as "v5e:4x4" or "v5p:4x4x4"; no array can be put on them.

  Raises:
    ConfigError: libtpu does not know the name or is not installed, or `model_devices` does not divide the number of
      devices.
  """
  if not _NAME.fullmatch(name):
    raise ConfigError(
      f"--topology={name!r} is not a topology; write a TPU's generation and its grid, such as v5e:4x4 or v5p:4x4x4."
    )
  for variable, value in LIBTPU.items():
    os.environ.setdefault(variable, value)
  try:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
  except jax.errors.JaxRuntimeError as error:
    raise ConfigError(f"--topology={name!r}: {' '.join(str(error).split())[:200]}") from None
  except RuntimeError as error:
    raise ConfigError(f"--topology={name!r} needs libtpu: pip install 'jax[tpu]' ({error}).") from None
  return sharding.mesh_over(devices, model_devices)


def chip(mesh: Mesh) -> Chip | None:
  """The specifications of a mesh's devices, or None for an unknown kind."""
  return CHIPS.get(mesh.devices.flat[0].device_kind)
