"""Runs a function on many images: a few at a time on one device, or in chunks on all devices.

The result of a convolution for an image depends, in the last bit, on the number of images in the call and on the
position of the image among them. So for many devices, the list of images is first split into chunks of a fixed size,
and batches and devices only get whole chunks: results are bitwise equal for any batch size and any number of devices.
"""

import math
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lrat_jax.core import sharding

_AXIS = "images"
_REPLICATED = PartitionSpec()
_SHARDED = PartitionSpec(_AXIS)
_NEVER_HALVED = ("cpu",)


def microbatch(function: Callable[..., Any], most: int, *rows: Any) -> Any:
  """Runs `function(*rows)` on arrays [n, ...] in a loop over parts of at most `most` rows: a tree of [times, ...].

  The size of a part is the largest that divides n. If no divisor of n is near `most`, all rows are processed at once,
  because parts of one or two rows would cost more than they save. May be traced.
  """
  count = len(jax.tree.leaves(rows)[0])
  most = min(most, count)
  few = max(size for size in range(1, most + 1) if count % size == 0)
  if few == count or 4 * few < most:
    return jax.tree.map(lambda x: x[None], function(*rows))
  parts = jax.tree.map(lambda x: x.reshape(-1, few, *x.shape[1:]), rows)
  return jax.lax.map(lambda part: function(*part), parts)


def at_batch_size(function: Callable[[Array], Array], size: int) -> Callable[[Array], Array]:
  """Lets a model that accepts a single batch size, such as an exported program, take batches of any size.

  Args:
    function: images [size, ...] -> logits [size, ...], each from its own image.
    size: 1 or more.

  Returns:
    images [n, ...] -> logits [n, ...], computed in parts of `size`; the last part is padded with its last image.
  """

  def call(images: Array) -> Array:
    count = len(images)
    times = math.ceil(count / size)
    filled = jnp.pad(images, ((0, times * size - count), *[(0, 0)] * (images.ndim - 1)), mode="edge")
    logits = jax.lax.map(function, filled.reshape(times, size, *images.shape[1:]))
    return logits.reshape(times * size, *logits.shape[2:])[:count]

  return call


def halved(size: int, mesh: Mesh, error: jax.errors.JaxRuntimeError) -> int:
  """Half of `size`: the number of images to try next, after an accelerator ran out of memory for `size` images.

  Raises the error itself if it is not about memory. Raises MemoryError if fewer images are not tried: if `size` is 1;
  on CPU, which uses the machine's memory; with several processes, because others may have had enough and continued.
  """
  if not sharding.is_out_of_memory(error):
    raise error
  if size == 1 or sharding.platform(mesh) in _NEVER_HALVED or jax.process_count() > 1:
    raise MemoryError(f"{mesh.devices.flat[0]} does not have enough memory for {size} images at once.") from error
  return size // 2


def any_batch_size(function: Callable[..., Any]) -> Callable[..., Any]:
  """The function itself, or `at_batch_size` of a program exported for one size (`jax.export.Exported.call`)."""
  exported = getattr(function, "__self__", function)
  if not isinstance(exported, jax.export.Exported) or not exported.in_avals or not exported.in_avals[0].shape:
    return function
  size = exported.in_avals[0].shape[0]
  return at_batch_size(exported.call, size) if isinstance(size, int) else exported.call


class Layout(NamedTuple):
  """How chunks are distributed over devices.

  Attributes:
    mesh: a mesh of one axis over the devices.
    chunk_size: number of images that a device processes at once.
    chunks_per_lane: number of chunks of a batch that a lane processes, one after the other.
    threads: number of threads that share one device; each is a lane. If it is 1, each device is a lane.
  """

  mesh: Mesh
  chunk_size: int
  chunks_per_lane: int
  threads: int = 1

  @property
  def num_lanes(self) -> int:
    """The number of chunks that are processed at the same time."""
    return self.mesh.size * self.threads

  @property
  def batch_size(self) -> int:
    """The number of images in a batch, over all devices."""
    return self.num_lanes * self.chunks_per_lane * self.chunk_size


def layout(devices: list[jax.Device], batch_size: int, chunk_size: int) -> Layout:
  """The layout of batches of `batch_size` images, rounded up to whole chunks on every device.

  A CPU that is a single device gets one thread per core, because otherwise one core would do most of the work.
  """
  mesh = sharding.mesh_of(devices, _AXIS)
  threads = sharding.num_cores() if len(devices) == 1 and devices[0].platform == "cpu" else 1
  return Layout(mesh, chunk_size, math.ceil(batch_size / (len(devices) * threads * chunk_size)), threads)


def lower(plan: Layout, function: Callable[..., Any], shared: Any, rows: Any) -> jax.stages.Lowered:
  """Lowers `function` for a batch. `run_batch` takes it compiled; a thread may compile it.

  `function(shared, rows)` takes a tree that all images share and a tree of arrays [chunk_size, ...], and returns a tree
  of arrays [chunk_size, ...].

  Args:
    shared: as returned by `replicate`.
    rows: a tree of arrays [n, ...] for any n; those given to `run_batch` must match it in all but n.
  """
  function = jax.jit(function, inline=True)  # traced once, for the shapes of its results and for the loop

  def on_device(shared: Any, count: Array, rows: Any) -> Any:
    split = lambda x: x.reshape(plan.chunks_per_lane, plan.chunk_size, *x.shape[1:])
    merge = lambda x: x.reshape(-1, *x.shape[2:])
    chunks = jax.tree.map(split, rows)
    results = jax.eval_shape(function, shared, jax.tree.map(lambda x: x[0], chunks))
    # Computed from the count, so that the carry varies over the devices from the start.
    blank = lambda like: jnp.zeros((plan.chunks_per_lane, *like.shape), like.dtype) + (0 * count[0]).astype(like.dtype)

    def work(carry: tuple[Array, Any]) -> tuple[Array, Any]:
      index, done = carry
      result = function(shared, jax.tree.map(lambda x: x[index], chunks))
      return index + 1, jax.tree.map(lambda whole, part: whole.at[index].set(part), done, result)

    start = (0 * count[0], jax.tree.map(blank, results))
    return jax.tree.map(merge, jax.lax.while_loop(lambda carry: carry[0] < count[0], work, start)[1])

  sharded = sharding.shard_map(on_device, plan.mesh, (_REPLICATED, _SHARDED, _SHARDED), _SHARDED)
  split = NamedSharding(plan.mesh, _SHARDED)
  like = lambda x: jax.ShapeDtypeStruct((plan.batch_size // plan.threads, *x.shape[1:]), x.dtype, sharding=split)
  counts = jax.ShapeDtypeStruct((plan.mesh.size,), jnp.int32, sharding=split)
  return sharding.jit(sharded, plan.mesh).lower(shared, counts, jax.tree.map(like, rows))


def _rows(plan: Layout, count: int) -> np.ndarray:
  """The row of a batch for each of `count` images: their chunks are assigned to the lanes in turn."""
  chunk, place = np.divmod(np.arange(count), plan.chunk_size)
  slot, lane = np.divmod(chunk, plan.num_lanes)
  return (lane * plan.chunks_per_lane + slot) * plan.chunk_size + place


def replicate(plan: Layout, tree: Any) -> Any:
  """Replicates the tree on every device."""
  return sharding.put(tree, plan.mesh, _REPLICATED)


def batches(plan: Layout, positions: np.ndarray) -> Iterator[np.ndarray]:
  """The positions [n] in order, `batch_size` at a time."""
  for first in range(0, len(positions), plan.batch_size):
    yield positions[first : first + plan.batch_size]


def run_batch(
  plan: Layout,
  compiled: jax.stages.Compiled,
  shared: Any,
  rows: Any,
  meanwhile: Callable[[], None] = lambda: None,
) -> Any:
  """Runs `compiled` on arrays [m, ...] with m from 1 to `batch_size`, and returns NumPy arrays [m, ...].

  `meanwhile` is called in this thread, after the devices have started.
  """
  length = len(jax.tree.leaves(rows)[0])
  used = math.ceil(length / plan.chunk_size)
  counts = (used - np.arange(plan.num_lanes) + plan.num_lanes - 1) // plan.num_lanes  # used chunks of each lane
  everything = _rows(plan, plan.batch_size)
  # Unused rows repeat the last image, so that a chunk is finished as soon as its own images are.
  places = np.minimum(np.argsort(everything), length - 1)
  batch = (counts.astype(np.int32), jax.tree.map(lambda x: x[places], rows))
  part = lambda thread: jax.tree.map(lambda x: np.split(x, plan.threads)[thread], batch)
  # Placed here, in the caller's thread, because its JAX settings apply only there.
  placed = [sharding.put(part(thread), plan.mesh, _SHARDED) for thread in range(plan.threads)]
  with futures.ThreadPoolExecutor(plan.threads) as pool:
    running = [pool.submit(lambda *part: jax.block_until_ready(compiled(shared, *part)), *part) for part in placed]
    meanwhile()
    results = [part.result() for part in running]
  joined = jax.tree.map(lambda *parts: np.concatenate(parts), *[sharding.fetch(result) for result in results])
  return jax.tree.map(lambda x: x[everything[:length]], joined)
