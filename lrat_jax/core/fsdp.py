"""Sharding of parameters, and of other arrays as large, over the mesh axis "model" (FSDP, ZeRO: arXiv:1910.02054).

A device stores its shard of every large array. Inside a `shard_map` it gathers the full arrays for a forward and a
backward pass, and receives only its own shard of the gradients. Computations outside, such as the optimiser's step, are
partitioned by the compiler.
"""

import functools
import math
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lrat_jax.core.sharding import AXIS, DATA, MODEL, REPLICATED, jit


def specs(tree: Any, mesh: Mesh, shard_above: int) -> Any:
  """How each array of a tree is laid out over a mesh; the same for arrays of the same shape.

  An array of more than `shard_above` entries is sharded over the mesh axis "model", along its largest axis whose length
  is divisible by the number of devices there (the last one if several are equal). All others, and arrays without such
  an axis, are replicated.
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
  """The axis of an array that is sharded over "model", or None if the array is replicated."""
  return len(spec) - 1 if spec else None


def all_gather(tree: Any, specs: Any) -> Any:
  """Inside a `shard_map`: gathers the full arrays from the shards that `specs` describe."""

  def gathered(leaf: Array, spec: PartitionSpec) -> Array:
    axis = _split_axis(spec)
    return leaf if axis is None else lax.all_gather(leaf, MODEL, axis=axis, tiled=True)

  return jax.tree.map(gathered, tree, specs)


def mean(tree: Any, specs: Any) -> Any:
  """Inside a `shard_map`: the mean of full arrays over all devices, replicated or sharded as `specs` say.

  All replicated results go into one all-reduce. Sharded ones are summed by a reduce-scatter over "model". `specs` may
  have one entry for a whole branch of the tree.
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
  """Inside a `jax.jit`: constrains the tree to be laid out over the mesh as `specs` say."""
  return lax.with_sharding_constraint(tree, jax.tree.map(functools.partial(NamedSharding, mesh), specs))


def _same(tree: Any) -> Any:
  return tree


def whole(tree: Any, mesh: Mesh) -> Any:
  """Replicates arrays that are sharded over a mesh. A tree that is replicated already is returned without a copy."""
  if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
    return tree
  return jit(_same, mesh, out_shardings=NamedSharding(mesh, REPLICATED))(tree)


def bytes_per_device(tree: Any) -> int:
  """The bytes on each device of a tree of arrays, or of `jax.ShapeDtypeStruct`s with a sharding."""
  part = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return sum(map(part, jax.tree.leaves(tree)))
