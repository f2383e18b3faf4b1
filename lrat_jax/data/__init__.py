"""Images and labels: sources, batches, augmentation."""

from lrat_jax.data.augment import augment, to_float
from lrat_jax.data.corruptions import SEVERITIES, CorruptedImages, corrupted_for, open_corrupted
from lrat_jax.data.labels import as_distributions, for_evaluation, for_training, smooth
from lrat_jax.data.listed import listed_for
from lrat_jax.data.loader import eval_batches, steps_per_epoch, train_batches
from lrat_jax.data.mixing import mix, next_rows
from lrat_jax.data.mixtures import Mixture, bytes_in_memory, load_for, num_extra, training_source
from lrat_jax.data.placement import PLACEMENTS, make_device_put
from lrat_jax.data.policies import IDBH, MAX_MAGNITUDE
from lrat_jax.data.sources import DataError, is_users, load
from lrat_jax.data.splits import SPLITS, Dataset, Split
from lrat_jax.data.streams import LOADINGS, Loading, Stream

__all__ = [
  "IDBH",
  "LOADINGS",
  "MAX_MAGNITUDE",
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
  "as_distributions",
  "augment",
  "bytes_in_memory",
  "corrupted_for",
  "eval_batches",
  "for_evaluation",
  "for_training",
  "is_users",
  "listed_for",
  "load",
  "load_for",
  "make_device_put",
  "mix",
  "next_rows",
  "num_extra",
  "open_corrupted",
  "smooth",
  "steps_per_epoch",
  "to_float",
  "train_batches",
  "training_source",
]
