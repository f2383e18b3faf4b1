"""Arrays on the devices of one process or of many: how they get there, and back."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def mesh_of(devices: Sequence[jax.Device], axis: str) -> Mesh:
  """A mesh of one axis over devices in the order given: a process's rows of a batch are next to one another."""
  return Mesh(np.array(devices), (axis,), axis_types=(AxisType.Auto,))


def put(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
  """The tree, which every process has whole, laid over a mesh that may be of several processes' devices."""
  sharding = NamedSharding(mesh, spec)
  if sharding.is_fully_addressable:
    return jax.device_put(tree, sharding)

  def put_leaf(leaf: Any) -> jax.Array:
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
      return jax.random.wrap_key_data(put_leaf(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

  return jax.tree.map(put_leaf, tree)


def fetch(tree: Any) -> Any:
  """Arrays that lie over a mesh as whole NumPy arrays; every process asks, and each gets all."""

  def fetch_leaf(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
      return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)

  return jax.tree.map(fetch_leaf, jax.device_get(tree) if jax.process_count() == 1 else tree)


def to_own_device(tree: Any) -> Any:
  """Arrays that are whole on every device, on the first of this process's devices alone."""
  own = jax.local_devices()[0]
  return jax.tree.map(lambda leaf: jax.device_put(leaf if leaf.is_fully_addressable else np.asarray(leaf), own), tree)
