"""Where training images wait: all of them on the devices when they fit, else on the host, sent ahead of their step."""

from collections.abc import Callable

import numpy as np
from jax import Array
from jax.sharding import Mesh

from lrat_jax.core import sharding
from lrat_jax.data.loader import Batch
from lrat_jax.data.mixtures import Mixture
from lrat_jax.data.splits import Split

PLACEMENTS = ("auto", "device", "host")

# (row numbers, moment or nothing) -> a batch.
Place = Callable[..., Batch]

# The share of a device's memory that "auto" gives to the training images; the rest is the model's.
_SHARE = 0.25


def _resides(split: Split | Mixture, mesh: Mesh, placement: str) -> bool:
  if split.is_streamed:
    return False
  if placement != "auto":
    return placement == "device"
  # A CPU reports no limit: its memory is the host's, and a second copy of the images would gain nothing.
  limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in mesh.local_devices]
  return split.nbytes <= _SHARE * min(limits)


def _from_devices(split: Split | Mixture, mesh: Mesh) -> Place:
  whole = sharding.replicate(mesh, (split.whole() if isinstance(split, Mixture) else split)._asdict())

  def take(whole: dict[str, Array], rows: Array) -> Batch:
    return {name: array[rows] for name, array in whole.items()}

  specs = (sharding.REPLICATED, sharding.BATCHED)
  gather = sharding.jit(sharding.shard_map(take, mesh, specs, sharding.BATCHED), mesh)
  return lambda rows, moment=None: gather(whole, sharding.shard_batch(mesh, rows.astype(np.int32)))


def make_device_put(split: Split | Mixture, mesh: Mesh, placement: str = "auto") -> Place:
  """A function from this process's row numbers of a batch to {"images", "labels", "indices"}, split over the mesh.

  Images that are cropped at random as they are read need the batch's moment as well (`Split.take`).

  `placement` "device" keeps the whole split on every device and sends row numbers alone; "host" sends the images;
  "auto" keeps it where it takes at most a quarter of an accelerator's memory. What is streamed is sent.
  """
  if _resides(split, mesh, placement):
    return _from_devices(split, mesh)
  return lambda rows, moment=None: sharding.shard_batch(mesh, split.take(rows, moment)._asdict())
