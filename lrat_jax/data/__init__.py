"""Images and labels: sources, batches, augmentation."""

from lrat_jax.data.augment import augment, to_float
from lrat_jax.data.corruptions import SEVERITIES, CorruptedImages, corrupted_for, open_corrupted
from lrat_jax.data.loader import eval_batches, steps_per_epoch, train_batches
from lrat_jax.data.mixtures import Mixture, load_for, num_extra, training_source
from lrat_jax.data.placement import PLACEMENTS, make_device_put
from lrat_jax.data.sources import DataError, is_users, load
from lrat_jax.data.splits import SPLITS, Dataset, Split
from lrat_jax.data.streams import LOADINGS, Loading, Stream

__all__ = [
  "LOADINGS",
  "PLACEMENTS",
  "SEVERITIES",
  "SPLITS",
  "CorruptedImages",
  "DataError",
  "Dataset",
  "Loading",
  "Mixture",
  "Split",
  "Stream",
  "augment",
  "corrupted_for",
  "eval_batches",
  "is_users",
  "load",
  "load_for",
  "make_device_put",
  "num_extra",
  "open_corrupted",
  "steps_per_epoch",
  "to_float",
  "train_batches",
  "training_source",
]
