"""Images and labels: sources, batches, augmentation."""

from lrat_jax.data.augment import augment, to_float
from lrat_jax.data.loader import eval_batches, steps_per_epoch, train_batches
from lrat_jax.data.placement import PLACEMENTS, placer
from lrat_jax.data.sources import SPLITS, DataError, Dataset, Split, is_own, load, load_for

__all__ = [
  "PLACEMENTS",
  "SPLITS",
  "DataError",
  "Dataset",
  "Split",
  "augment",
  "eval_batches",
  "is_own",
  "load",
  "load_for",
  "placer",
  "steps_per_epoch",
  "to_float",
  "train_batches",
]
