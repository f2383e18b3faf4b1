"""Batches: Grain shuffles and repeats the training indices; evaluation goes through a split once, padded and masked.

The order of training batches is a pure function of the seed and the step. Every host walks the same order of indices
and takes its own rows of each batch, so the number of hosts changes nothing and one small state resumes all of them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from lrat_jax.core import sharding
from lrat_jax.data.sources import Split

Batch = dict[str, Any]


def steps_per_epoch(split: Split, batch_size: int) -> int:
  """Whole batches in an epoch; what is left over is in other batches next epoch."""
  return len(split.labels) // batch_size


def train_batches(
  split: Split, batch_size: int, seed: int, place: Callable[[np.ndarray], Batch] | None = None
) -> grain.DatasetIterator:
  """Endless shuffled batches {"images", "labels", "indices"} of this process's rows, every epoch in another order.

  `place` makes a batch of its row numbers; by default it stays on the host. It runs in a thread of its own, two batches
  ahead. The iterator's `get_state` and `set_state` continue with the very next batch.
  """
  place = place or (lambda chosen: split.take(chosen)._asdict())
  rows = sharding.process_rows(batch_size)
  # Grain adds the epoch to the seed: seeds 0 and 1 themselves would share all but one of their orders.
  grain_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])

  order = grain.MapDataset.range(len(split.labels)).shuffle(seed=grain_seed).batch(batch_size, drop_remainder=True)
  # Grain's own reading threads would only hand on numbers; the thread that is worth having makes batches of them.
  batches = order.repeat().to_iter_dataset(grain.ReadOptions(num_threads=0)).map(lambda numbers: place(numbers[rows]))
  return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2))


def eval_batches(split: Split, batch_size: int) -> Iterator[Batch]:
  """The split in order, once; the last batch is padded with its first image and says so in "mask" [rows] bool."""
  count = len(split.labels)
  for start in range(0, count, batch_size):
    rows = np.arange(start, start + batch_size)
    mask = rows < count
    local = sharding.process_rows(batch_size)
    yield split.take(np.where(mask, rows, start)[local])._asdict() | {"mask": mask[local]}
