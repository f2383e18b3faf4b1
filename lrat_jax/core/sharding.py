"""Devices: their mesh, how arrays are laid out over it, and how they are copied to the host."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lrat_jax.core.errors import ConfigError
from lrat_jax.core.text import counted

# The axes of a mesh. A batch is sharded over both, so a mean over the batch is a mean over both. Arrays as large as the
# parameters are sharded over the second axis only (`core.fsdp`), which has one device by default.
DATA, MODEL = "data", "model"
AXIS = (DATA, MODEL)
REPLICATED = PartitionSpec()
BATCHED = PartitionSpec(AXIS)

# With fewer images than this, a CPU device spends more time on the loop than on the model.
_MIN_IMAGES_PER_CPU_DEVICE = 16


def num_cores() -> int:
  """The number of CPU cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_cpu_cores(*batch_sizes: int, num_processes: int = 1, model_devices: int = 1) -> str:
  """Gives JAX one CPU device per core, if all batches split evenly, else fewer; call it before JAX starts its backend.

  Sharding over cores is about twice as fast as XLA's own threads on the networks here. If the user has set the number
  of devices (XLA_FLAGS, JAX_NUM_CPU_DEVICES), it is kept. Accelerators are not affected.

  Args:
    batch_sizes: over all devices.
    num_processes: of the run; all have the same share of every batch and the same number of devices.
    model_devices: divides the number of devices of all processes, if possible.

  Returns:
    A line for the user if JAX has already started with fewer CPU devices, which cannot be changed; else "".
  """
  if "JAX_NUM_CPU_DEVICES" in os.environ or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    return ""
  most = num_cores()
  common, smallest = math.gcd(*batch_sizes) // num_processes, min(batch_sizes) // num_processes
  fitting = [d for d in range(1, most + 1) if common % d == 0 and smallest // d >= _MIN_IMAGES_PER_CPU_DEVICE]
  wanted = max((d for d in fitting if d * num_processes % model_devices == 0), default=max(fitting, default=1))
  try:
    jax.config.update("jax_num_cpu_devices", wanted)
  except RuntimeError:  # user code, or a notebook, has used JAX before
    found = jax.local_device_count()
    if jax.default_backend() == "cpu" and found < wanted:
      return (
        f"JAX was in use before the run began, with {counted(found, 'CPU device')} where {wanted} would be faster; "
        f"to use them, set JAX_NUM_CPU_DEVICES={wanted} before Python starts."
      )
  return ""


def make_mesh(num_devices: int | None = None, model_devices: int = 1) -> Mesh:
  """`mesh_over` all devices of all hosts, or the first `num_devices`."""
  return mesh_over(jax.devices()[:num_devices], model_devices)


def mesh_over(devices: Sequence[jax.Device], model_devices: int = 1) -> Mesh:
  """A mesh with the axes "data" and "model"; the second has `model_devices` devices, which are neighbours.

  Raises:
    ConfigError: `model_devices` does not divide the number of devices.
  """
  if len(devices) % model_devices:
    raise ConfigError(f"config.mesh.model_devices={model_devices} does not divide the {len(devices)} devices in use.")
  return Mesh(np.array(devices).reshape(-1, model_devices), AXIS, axis_types=(AxisType.Auto,) * 2)


def platform(mesh: Mesh) -> str:
  """The platform of a mesh's devices: "cpu", "gpu" or "tpu"."""
  return str(mesh.devices.flat[0].platform)


def is_out_of_memory(error: Exception) -> bool:
  """Whether JAX raised the error because a device had too little memory for a program's arrays."""
  return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def memory_for(field: str, size: int, mesh: Mesh) -> Iterator[None]:
  """Raises ConfigError, with the field and its value, if the memory of a device is too small for the code inside."""
  try:
    yield
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    if not (isinstance(error, MemoryError) or is_out_of_memory(error)):
      raise
    raise ConfigError(f"{field}={size} is too large for the memory of {mesh.devices.flat[0]}; lower it.") from error


def jit(function: Callable[..., Any], mesh: Mesh, **options: Any) -> Any:
  """`jax.jit` for the devices of a mesh; for an outermost `jax.jit`, not for one inside another.

  On CPU, the compiler of jaxlib 0.10 takes half the time without its newer code generator, and the programs are as fast
  or faster (benchmarks/README.md); later versions need that generator. Splitting the program into one part per core and
  using the widest vectors saves another twentieth.
  """
  old_cpu = platform(mesh) == "cpu" and jaxlib.__version__.startswith("0.10.")
  return jax.jit(function, compiler_options=_old_cpu_options() if old_cpu else None, **options)


def _old_cpu_options() -> dict[str, Any]:
  return {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": num_cores(),
    "xla_cpu_prefer_vector_width": 512,
  }


def shard_map(function: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
  """`jax.shard_map` in which user-defined code runs as it does outside.

  JAX's check of which values vary over devices is stricter than JAX is elsewhere: it would refuse a `jax.custom_vjp`
  that takes weights, or a loop that starts from a constant. So the check is off: replicated results must be computed by
  a collective, as the step does for loss and gradient.
  """
  return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def replicate(mesh: Mesh, tree: Any) -> Any:
  """Replicates every array of the tree on every device."""
  return put(tree, mesh, REPLICATED)


def shard_batch(mesh: Mesh, batch: Any) -> Any:
  """This process's rows of a batch, as global arrays sharded over the mesh along their first axis."""
  sharding = NamedSharding(mesh, BATCHED)
  return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def process_rows(batch_size: int) -> slice:
  """The rows of a global batch that belong to this process."""
  rows = batch_size // jax.process_count()
  return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def wait_for_all(what: str) -> None:
  """Waits until every process has reached this point."""
  multihost_utils.sync_global_devices(what)


def mesh_of(devices: Sequence[jax.Device], axis: str) -> Mesh:
  """A mesh of one axis over devices in the given order, in which a process's rows of a batch are contiguous."""
  return Mesh(np.array(devices), (axis,), axis_types=(AxisType.Auto,))


def put(tree: Any, mesh: Mesh, specs: Any) -> Any:
  """Puts a tree, of which every process has all data, on a mesh, which may have devices of several processes.

  `specs` is one `PartitionSpec` for all arrays, or a tree of them.
  """
  shardings = jax.tree.map(functools.partial(NamedSharding, mesh), specs)
  if all(sharding.is_fully_addressable for sharding in jax.tree.leaves(shardings)):
    return jax.device_put(tree, shardings)

  def put_leaf(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
      return jax.random.wrap_key_data(put_leaf(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

  return jax.tree.map(put_leaf, tree, jax.tree.broadcast(shardings, tree))


def fetch(tree: Any) -> Any:
  """Full NumPy arrays from arrays on a mesh. All processes must call it; each gets all arrays, by one all-gather."""
  if jax.process_count() == 1:
    return jax.tree.map(np.asarray, jax.device_get(tree))
  leaves, structure = jax.tree.flatten(tree)
  split = [index for index, leaf in enumerate(leaves) if _is_elsewhere(leaf)]
  if split:
    gathered = gather([leaves[index] for index in split])
    leaves = [gathered[split.index(index)] if index in split else leaf for index, leaf in enumerate(leaves)]
  return jax.tree.unflatten(structure, [np.asarray(leaf) for leaf in leaves])


def _is_elsewhere(leaf: Any) -> bool:
  """Whether a part of an array is only on devices of other processes."""
  return isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)


@functools.cache
def make_pack(split: NamedSharding) -> Callable[..., jax.Array]:
  """A function from arrays sharded along their first axis to uint8 [devices, n]: each device's bytes, replicated."""

  def as_bytes(x: jax.Array) -> jax.Array:
    return jnp.ravel(x.astype(jnp.uint8) if x.dtype == bool else jax.lax.bitcast_convert_type(x, jnp.uint8))

  pack = lambda *shards: jnp.concatenate([as_bytes(shard) for shard in shards])[None]
  on_devices = shard_map(pack, cast(Mesh, split.mesh), split.spec, split.spec)
  return jit(on_devices, cast(Mesh, split.mesh), out_shardings=NamedSharding(split.mesh, REPLICATED))


def gather(arrays: Sequence[jax.Array]) -> list[np.ndarray]:
  """Full arrays on the host from arrays that are all sharded alike along their first axis, by one all-gather."""
  split = arrays[0].sharding
  packed = np.asarray(make_pack(split)(*arrays))
  ends = np.cumsum([array.nbytes // len(packed) for array in arrays])
  parts = np.split(packed, ends[:-1], axis=1)
  whole = lambda part, like: np.ascontiguousarray(part).reshape(-1).view(like.dtype).reshape(like.shape)
  return [whole(part, array) for part, array in zip(parts, arrays, strict=True)]


def to_own_device(tree: Any) -> Any:
  """Copies replicated arrays to a single device, the first of this process."""
  own = jax.local_devices()[0]
  return jax.tree.map(lambda leaf: jax.device_put(leaf if leaf.is_fully_addressable else np.asarray(leaf), own), tree)
