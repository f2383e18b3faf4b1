"""Images and labels: sources, batches, augmentation."""

from lrat_jax.data.augment import augment, to_float
from lrat_jax.data.loader import eval_batches, steps_per_epoch, train_batches
from lrat_jax.data.placement import PLACEMENTS, make_device_put
from lrat_jax.data.sources import SPLITS, DataError, Dataset, Split, is_users, load, load_for

__all__ = [
  "PLACEMENTS",
  "SPLITS",
  "DataError",
  "Dataset",
  "Split",
  "augment",
  "eval_batches",
  "is_users",
  "load",
  "load_for",
  "make_device_put",
  "steps_per_epoch",
  "to_float",
  "train_batches",
]
