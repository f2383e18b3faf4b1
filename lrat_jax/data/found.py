"""Checks of what a source returns: images and labels of valid shapes, types and ranges, and splits that agree."""

from typing import NamedTuple

import numpy as np

from lrat_jax.core.arguments import ROUNDING, warn_of_layout
from lrat_jax.data.labels import for_evaluation
from lrat_jax.data.npz_idx import DataError
from lrat_jax.data.splits import Split
from lrat_jax.data.streams import Decision

# The largest int32.
_MOST_LABELS = 2**31 - 1
# The largest allowed difference from 1 of the sum of a label's probabilities, which may be stored as float16.
_ROUNDING = 2e-3

# Images (possibly a `Stream`) and labels.
Arrays = tuple[np.ndarray, np.ndarray]


class Found(NamedTuple):
  """The contents of a source.

  Attributes:
    train: None if it was not requested.
    num_classes: None if unknown.
    decision: whether its images are streamed.
  """

  train: Split | None
  test: Split
  num_classes: int | None
  decision: Decision = Decision()


def as_images(images: np.ndarray, where: str) -> np.ndarray:
  """Images [n, h, w] or [n, h, w, c] as [n, h, w, c]: uint8, or float32 in [0, 1]. Raises DataError."""
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim != 4 or 0 in images.shape:
    raise DataError(f"{where} have shape {images.shape}; it must be [n, h, w] or [n, h, w, c], without a size of 0.")
  warn_of_layout(images.shape)
  if images.dtype == np.uint8:
    return images
  if not np.issubdtype(images.dtype, np.floating):
    raise DataError(f"{where} are {images.dtype}; they must be uint8 in 0..255 or floats in [0, 1].")
  low, high = float(images.min()), float(images.max())
  if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also if one is NaN
    raise DataError(f"{where} are floats from {low:.8g} to {high:.8g}; float images must be in [0, 1].")
  return np.clip(images.astype(np.float32), 0, 1)


def check_labels(labels: np.ndarray, count: int, num_classes: int | None, where: str) -> np.ndarray:
  """Integers [count] or [count, 1] in 0..num_classes - 1 as int32 [count]. Raises DataError, which names `where`."""
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.shape != (count,):
    raise DataError(f"{where} have shape {labels.shape}, but there are {count} images.")
  if not np.issubdtype(labels.dtype, np.integer):
    raise DataError(f"{where} are {labels.dtype}; they must be integers, or floats [n, classes].")
  top = num_classes - 1 if num_classes is not None else min(int(labels.max()), _MOST_LABELS)
  if labels.min() < 0 or labels.max() > top:
    raise DataError(f"{where} range from {labels.min()} to {labels.max()}; the classes are 0..{max(top, 0)}.")
  return labels.astype(np.int32)


def as_labels(labels: np.ndarray, count: int, num_classes: int | None, where: str) -> np.ndarray:
  """Integer labels as `check_labels` returns them; floats [count, classes], distributions over classes, as float32.

  Raises DataError, which names `where`.
  """
  if not np.issubdtype(labels.dtype, np.floating) or labels.ndim != 2:
    return check_labels(labels, count, num_classes, where)
  if labels.shape != (count, num_classes or labels.shape[1]):
    expected = f"({count}, {num_classes or 'classes'})"
    raise DataError(f"{where} are {labels.dtype} {labels.shape}; distributions over the classes must be {expected}.")
  labels = labels.astype(np.float32)
  sums = labels.sum(axis=1)
  wrong = np.flatnonzero(~((labels.min(axis=1) >= 0) & (np.abs(sums - 1) <= _ROUNDING)))  # also if an entry is NaN
  if wrong.size:
    row = wrong[0]
    raise DataError(
      f"{where}: row {row} is not a distribution over the classes: its smallest entry is {labels[row].min():.4g}, its "
      f"sum {sums[row]:.4g}."
    )
  return labels / sums[:, None]


def split_of(arrays: Arrays, num_classes: int | None, where: str) -> Split:
  images, labels = arrays
  images = as_images(images, f"{where} images")
  labels = as_labels(labels, len(images), num_classes, f"{where} labels")
  return Split(images, labels, np.arange(len(images), dtype=np.int32))


def train_and_test(
  train: Arrays | None, test: Arrays, num_classes: int | None, where: str, decision: Decision
) -> Found:
  """Checks arrays (images, labels) and returns them as splits; test labels are converted to hard labels.

  Without `num_classes`, the number of classes follows from the training labels; without these, only the model can
  determine it.
  """
  if train is None:
    tested = for_evaluation(split_of(test, num_classes, f"{where}: test"))
    return Found(None, tested, num_classes, decision)
  checked = split_of(train, num_classes, f"{where}: training")
  most = checked.labels.shape[1] - 1 if checked.labels.ndim == 2 else int(checked.labels.max())
  if num_classes is None and checked.labels.ndim == 1 and most >= len(checked.labels):
    raise DataError(
      f"{where}: training labels go up to {most}, but there are only {len(checked.labels)} images; classes are "
      "numbered from 0."
    )
  num_classes = num_classes or most + 1
  if num_classes < 2:
    raise DataError(f"{where}: training labels contain only one class; a classifier needs at least two.")
  tested = for_evaluation(split_of(test, num_classes, f"{where}: test"))
  if checked.images.shape[1:] != tested.images.shape[1:]:
    raise DataError(
      f"{where}: training images are {checked.images.shape[1:]}, test images {tested.images.shape[1:]}; "
      "they must agree."
    )
  return Found(checked, tested, num_classes, decision)
