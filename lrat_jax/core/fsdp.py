"""Parameters, and what is as large as they are, in parts over a mesh's axis "model" (FSDP, ZeRO: arXiv:1910.02054).

A device keeps its part of every large array. Inside a `shard_map` it gets the arrays whole for a forward and a
backward, and of the gradients the part that belongs to what it keeps. What is done with the parts outside, as an
optimiser's step, is the compiler's to split.
"""

import functools
import math
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lrat_jax.core.sharding import AXIS, DATA, MODEL, REPLICATED, jit


def specs(tree: Any, mesh: Mesh, shard_above: int) -> Any:
  """How each array of a tree lies over a mesh; the same for arrays of one shape.

  One of more than `shard_above` entries is split over the axis "model" along its largest axis that the devices there
  divide, of equal ones the last; all others, and those without such an axis, are whole on every device.
  """
  parts = mesh.shape[MODEL]

  def spec(leaf: Any) -> PartitionSpec:
    axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
    if parts == 1 or math.prod(leaf.shape) <= shard_above or not axes:
      return REPLICATED
    largest = max(axes, key=lambda axis: (leaf.shape[axis], axis))
    return PartitionSpec(*(None,) * largest, MODEL)

  return jax.tree.map(spec, tree)


def _split_axis(spec: PartitionSpec) -> int | None:
  """The axis of an array that is split over "model", or None where it is whole."""
  return len(spec) - 1 if spec else None


def all_gather(tree: Any, specs: Any) -> Any:
  """Inside a `shard_map`: arrays of which this device has the part that `specs` say, whole."""

  def gathered(leaf: Array, spec: PartitionSpec) -> Array:
    axis = _split_axis(spec)
    return leaf if axis is None else lax.all_gather(leaf, MODEL, axis=axis, tiled=True)

  return jax.tree.map(gathered, tree, specs)


def mean(tree: Any, specs: Any) -> Any:
  """Inside a `shard_map`: the mean over all devices of arrays that each has whole, of each the part that `specs` say.

  All that stay whole go into one all-reduce. Those that are split are scattered over "model" as they are summed.
  `specs` may have one entry for a whole branch of the tree.
  """
  leaves, structure = jax.tree.flatten(tree)
  axes = [_split_axis(spec) for spec in jax.tree.leaves(jax.tree.broadcast(specs, tree))]
  scatter = functools.partial(lax.psum_scatter, axis_name=MODEL, tiled=True)
  parts = {i: scatter(leaves[i], scatter_dimension=axis) for i, axis in enumerate(axes) if axis is not None}
  whole = {i: leaves[i] for i, axis in enumerate(axes) if axis is None}
  joined = lax.pmean(whole, AXIS)
  if parts:
    joined |= jax.tree.map(lambda part: part / lax.axis_size(MODEL), lax.pmean(parts, DATA))
  return jax.tree.unflatten(structure, [joined[i] for i in range(len(leaves))])


def constrain(tree: Any, mesh: Mesh, specs: Any) -> Any:
  """Inside a `jax.jit`: the tree, which is to lie over the mesh as `specs` say."""
  return lax.with_sharding_constraint(tree, jax.tree.map(functools.partial(NamedSharding, mesh), specs))


def _same(tree: Any) -> Any:
  return tree


def whole(tree: Any, mesh: Mesh) -> Any:
  """Arrays that lie over a mesh in parts, whole on every device; those that do already are not copied."""
  if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
    return tree
  return jit(_same, mesh, out_shardings=NamedSharding(mesh, REPLICATED))(tree)


def bytes_per_device(tree: Any) -> int:
  """What a tree of arrays, or of `jax.ShapeDtypeStruct`s with a place, takes on each device."""
  part = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return sum(map(part, jax.tree.leaves(tree)))
