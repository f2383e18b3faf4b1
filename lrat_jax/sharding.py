"""Devices: the one-axis mesh, what lies how on it, and the way back to the host."""

import math
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lrat_jax.attacks import placement

AXIS = "data"
REPLICATED = PartitionSpec()
BATCHED = PartitionSpec(AXIS)

# Under so few images a CPU device spends more on the loop than on the model.
_MIN_IMAGES_PER_CPU_DEVICE = 16


def use_cpu_cores(*batch_sizes: int, num_processes: int = 1) -> None:
  """Gives JAX one CPU device per core, as far as all batches split evenly; call it before JAX starts its backend.

  Sharding over cores is about twice as fast as XLA's own threads on the networks here. Where the user has said how many
  devices there are (XLA_FLAGS, JAX_NUM_CPU_DEVICES), that stands. Accelerators are not touched by it.

  Args:
    batch_sizes: of all devices together.
    num_processes: of the run; each has a share of every batch, and as many devices as the others.

  Raises:
    RuntimeError: JAX has started already.
  """
  if "JAX_NUM_CPU_DEVICES" in os.environ or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    return
  most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  common, smallest = math.gcd(*batch_sizes) // num_processes, min(batch_sizes) // num_processes
  fitting = [d for d in range(1, most + 1) if common % d == 0 and smallest // d >= _MIN_IMAGES_PER_CPU_DEVICE]
  jax.config.update("jax_num_cpu_devices", max(fitting, default=1))


def make_mesh(num_devices: int | None = None) -> Mesh:
  """A mesh of one axis, "data", over all devices of all hosts, or over the first `num_devices`."""
  return placement.mesh_of(jax.devices()[:num_devices], AXIS)


def replicate(mesh: Mesh, tree: Any) -> Any:
  """The tree with every array whole on every device."""
  return placement.put(tree, mesh, REPLICATED)


def shard_batch(mesh: Mesh, batch: Any) -> Any:
  """This process's rows of a batch, as global arrays split over the mesh along their first axis."""
  sharding = NamedSharding(mesh, BATCHED)
  return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def process_rows(batch_size: int) -> slice:
  """The rows of a global batch that belong to this process."""
  rows = batch_size // jax.process_count()
  return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def wait_for_all(what: str) -> None:
  """Waits until every process is at this point."""
  multihost_utils.sync_global_devices(what)


def fetch(tree: Any) -> Any:
  """Global arrays as whole NumPy arrays on every host."""
  return placement.fetch(tree)
