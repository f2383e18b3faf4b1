"""Where training images are stored: all on the devices if they fit, else on the host, sent ahead of their step."""

from collections.abc import Callable

import numpy as np
from jax import Array
from jax.sharding import Mesh

from lrat_jax.core import sharding
from lrat_jax.data.loader import Batch
from lrat_jax.data.mixtures import Mixture
from lrat_jax.data.splits import Split

PLACEMENTS = ("auto", "device", "host")

# (row numbers, optional moment) -> batch.
Place = Callable[..., Batch]

# The largest share of a device's memory that "auto" uses for training images; the rest is for the model.
_SHARE = 0.25


def _resides(split: Split | Mixture, mesh: Mesh, placement: str) -> bool:
  if split.is_streamed:
    return False
  if placement != "auto":
    return placement == "device"
  # A CPU reports no limit: its memory is the host's, so a second copy of the images would have no benefit.
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
  """A function from this process's row numbers of a batch to {"images", "labels", "indices"}, sharded over the mesh.

  If images are cropped at random when they are read, it needs the batch's moment as well (`Split.take`).

  `placement` "device" keeps the whole split on every device and sends only row numbers; "host" sends the images;
  "auto" is "device" if the split takes at most a quarter of an accelerator's memory, else "host". Streamed images are
  always sent.
  """
  if _resides(split, mesh, placement):
    return _from_devices(split, mesh)
  return lambda rows, moment=None: sharding.shard_batch(mesh, split.take(rows, moment)._asdict())
