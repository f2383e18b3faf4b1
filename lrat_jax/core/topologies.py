"""TPU devices that are described and not there: programs are compiled for them on any machine, by PyPI's libtpu."""

import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from lrat_jax.core import sharding
from lrat_jax.core.errors import ConfigError


class Chip(NamedTuple):
  """What a device of a kind has, by Google's pages on its TPUs (cloud.google.com/tpu/docs/system-architecture-tpu-vm).

  Attributes:
    memory: bytes of HBM.
    flops: bfloat16 operations a second at most.
    bandwidth: bytes a second between HBM and the cores at most.
  """

  memory: float
  flops: float
  bandwidth: float


# By JAX's `device_kind`. Those of v4 and older are described by cores, and are not here.
CHIPS = {
  "TPU v5 lite": Chip(16 * 2**30, 197e12, 819e9),
  "TPU v5": Chip(95 * 2**30, 459e12, 2765e9),
  "TPU v6 lite": Chip(32 * 2**30, 918e12, 1640e9),
}
# Where libtpu runs, which it would ask Google's metadata server for; that others may run beside it, as no device is
# taken; and its level of logging.
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
  """`sharding.mesh_over` the devices of a topology as "v5e:4x4" or "v5p:4x4x4"; no array can be put on them.

  Raises:
    ConfigError: a name that libtpu does not know, no libtpu, or other numbers of devices.
  """
  if not _NAME.fullmatch(name):
    raise ConfigError(f"--topology={name!r} is none; write a TPU's generation and its grid, as v5e:4x4 or v5p:4x4x4.")
  for variable, value in LIBTPU.items():
    os.environ.setdefault(variable, value)
  try:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
  except jax.errors.JaxRuntimeError as error:
    raise ConfigError(f"--topology={name!r}: {' '.join(str(error).split())[:200]}") from None
  except RuntimeError as error:
    raise ConfigError(f"--topology={name!r} needs libtpu: pip install 'lrat_jax[rehearse]' ({error}).") from None
  return sharding.mesh_over(devices, model_devices)


def chip(mesh: Mesh) -> Chip | None:
  """What each device of a mesh has, or None for a kind that is not known here."""
  return CHIPS.get(mesh.devices.flat[0].device_kind)
