"""Images and labels: sources, batches, augmentation."""

from lrat_jax.data.augment import augment, to_float
from lrat_jax.data.corruptions import SEVERITIES, CorruptedImages, corrupted_for, open_corrupted
from lrat_jax.data.loader import eval_batches, steps_per_epoch, train_batches
from lrat_jax.data.placement import PLACEMENTS, make_device_put
from lrat_jax.data.sources import SPLITS, DataError, Dataset, Split, is_users, load, load_for

__all__ = [
  "PLACEMENTS",
  "SEVERITIES",
  "SPLITS",
  "CorruptedImages",
  "DataError",
  "Dataset",
  "Split",
  "augment",
  "corrupted_for",
  "eval_batches",
  "is_users",
  "load",
  "load_for",
  "make_device_put",
  "open_corrupted",
  "steps_per_epoch",
  "to_float",
  "train_batches",
]
