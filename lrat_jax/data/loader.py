"""Batches: Grain shuffles and repeats the training indices; evaluation goes through a split once, padded and masked.

The order of training batches is a pure function of the seed and the step. Every host iterates over the same order of
indices and takes its own rows of each batch, so the order does not depend on the number of hosts, and one small state
is enough to resume all of them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from lrat_jax.core import sharding
from lrat_jax.data.mixtures import Mixture, num_extra
from lrat_jax.data.splits import Split
from lrat_jax.data.streams import Moment

Batch = dict[str, Any]


def steps_per_epoch(split: Split, batch_size: int) -> int:
  """The number of complete batches in an epoch; the images that are left over differ from epoch to epoch.

  With an extra source, `split` is the primary one. An epoch then still has as many images as the primary split, now
  from both sources together, as in Gowal et al. 2021 and Wang et al. 2023.
  """
  return len(split.labels) // batch_size


def _order(count: int, batch_size: int, seed: int) -> grain.MapDataset:
  """Complete batches of the numbers below `count`: each number at most once per pass, each pass in another order."""
  return grain.MapDataset.range(count).shuffle(seed=seed).batch(batch_size, drop_remainder=True)


def _mixed_order(mixture: Mixture, batch_size: int, seeds: tuple[int, int]) -> grain.MapDataset:
  """Batches with a fixed share of each source; each source is shuffled and repeated independently."""
  count, is_extra = len(mixture.primary.labels), mixture.is_extra(batch_size)
  others = num_extra(mixture.fraction, batch_size)
  extra = _order(len(mixture.extra.labels), others, seeds[1]).repeat()

  def mixed(step: int, rows: np.ndarray) -> np.ndarray:
    numbers = np.empty(batch_size, np.int64)
    numbers[~is_extra], numbers[is_extra] = rows, count + extra[step]
    return numbers

  return _order(count, batch_size - others, seeds[0]).repeat().map_with_index(mixed)


def train_batches(
  split: Split | Mixture,
  batch_size: int,
  seed: int,
  place: Callable[[np.ndarray, Moment], Batch] | None = None,
  ahead: int = 2,
) -> grain.DatasetIterator:
  """Endless shuffled batches {"images", "labels", "indices"} of this process's rows, every epoch in another order.

  Every batch of a mixture has the same number of extra images, at the same positions.

  `place` makes a batch from its row numbers and its moment (seed, step); by default the batch stays on the host.
  `place` runs in a separate thread, `ahead` batches ahead, or in two threads if images are streamed. `get_state` and
  `set_state` of the iterator resume with exactly the next batch.
  """
  place = place or (lambda chosen, moment: split.take(chosen, moment)._asdict())
  rows = sharding.process_rows(batch_size)
  # Grain adds the epoch to the seed: if seeds 0 and 1 were used directly, they would share all but one of their orders.
  first, second = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
  if isinstance(split, Mixture):
    order = _mixed_order(split, batch_size, (first, second))
  else:
    order = _order(len(split.labels), batch_size, first).repeat()
  batches = order.map_with_index(lambda step, numbers: place(numbers[rows], (seed, step)))
  return iter(grain.experimental.ThreadPrefetchIterDataset(_read(batches, split), prefetch_buffer_size=ahead))


def _read(batches: grain.MapDataset, split: Split | Mixture) -> grain.IterDataset:
  """The batches in order: streamed ones are read two at a time, those in memory are gathered when they are needed."""
  options = grain.ReadOptions(num_threads=2 if split.is_streamed else 0, prefetch_buffer_size=2)
  return batches.to_iter_dataset(options)


def eval_batches(split: Split, batch_size: int) -> Iterator[Batch]:
  """The split in order, once; the last batch is padded with its first image, where "mask", bool [rows], is False."""
  count, local = len(split.labels), sharding.process_rows(batch_size)

  def batch(start: int) -> Batch:
    rows = np.arange(start, start + batch_size)
    mask = rows < count
    return split.take(np.where(mask, rows, start)[local])._asdict() | {"mask": mask[local]}

  return iter(_read(grain.MapDataset.range(0, count, batch_size).map(batch), split))
