"""Where images come from: digits, TFDS, npz archives, idx files, the user's function; arrays held in memory.

A data set is three splits of uint8 images (or floats in [0, 1]) with integer labels. The validation split is cut from
the training split by a fixed permutation, so that runs with different seeds hold out the same images.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrat_jax.core import user_code
from lrat_jax.data import npz_idx, tfds
from lrat_jax.data.npz_idx import DataError

SPLITS = ("test", "validation", "train")

_SPLIT_SEED = 0
_DIGITS_TEST_SIZE = 500
# What int32 holds.
_MOST_LABELS = 2**31 - 1


class Split(NamedTuple):
  """Images of one split.

  Attributes:
    images: uint8 [n, h, w, c] in 0..255, or float32 in [0, 1].
    labels: int32 [n].
    indices: int32 [n], each image's index in the source's own split: its name in every result.
  """

  images: np.ndarray
  labels: np.ndarray
  indices: np.ndarray

  def take(self, rows: np.ndarray) -> "Split":
    return Split(self.images[rows], self.labels[rows], self.indices[rows])


class Dataset(NamedTuple):
  """The three splits and the number of classes."""

  train: Split
  validation: Split
  test: Split
  num_classes: int

  def split(self, name: str) -> Split:
    """One of `SPLITS`."""
    return {"test": self.test, "validation": self.validation, "train": self.train}[name]

  @property
  def image_shape(self) -> tuple[int, ...]:
    return self.train.images.shape[1:]


def _num_sanity_examples(images: np.ndarray, where: str) -> np.ndarray:
  """[n, h, w] or [n, h, w, c] as uint8, or as float32 in [0, 1]."""
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim != 4 or 0 in images.shape:
    raise DataError(f"{where} has shape {images.shape}; images are [n, h, w] or [n, h, w, c], none of them 0.")
  if images.dtype == np.uint8:
    return images
  if not np.issubdtype(images.dtype, np.floating):
    raise DataError(f"{where} is {images.dtype}; images are uint8 in 0..255 or floats in [0, 1].")
  low, high = float(images.min()), float(images.max())
  if not (low >= 0 and high <= 1):  # also where one is NaN
    raise DataError(f"{where} holds floats from {low:g} to {high:g}; float images are in [0, 1].")
  return images.astype(np.float32)


def _check_labels(labels: np.ndarray, count: int, num_classes: int | None, where: str) -> np.ndarray:
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.shape != (count,):
    raise DataError(f"{where} has shape {labels.shape} where there are {count} images.")
  if not np.issubdtype(labels.dtype, np.integer):
    raise DataError(f"{where} is {labels.dtype}; labels are integers.")
  top = num_classes - 1 if num_classes is not None else min(int(labels.max()), _MOST_LABELS)
  if labels.min() < 0 or labels.max() > top:
    raise DataError(f"{where} holds labels from {labels.min()} to {labels.max()}; the classes are 0..{max(top, 0)}.")
  return labels.astype(np.int32)


def _split(images: np.ndarray, labels: np.ndarray, num_classes: int | None, where: str) -> Split:
  images = _num_sanity_examples(images, f"{where} images")
  labels = _check_labels(labels, len(images), num_classes, f"{where} labels")
  return Split(images, labels, np.arange(len(images), dtype=np.int32))


def _train_and_test(train, test, num_classes: int | None, where: str) -> tuple[Split, Split, int]:
  """Two checked splits of arrays (images, labels); without a class count, the training labels say how many."""
  train = _split(*train, num_classes, f"{where}: training")
  most = int(train.labels.max())
  if num_classes is None and most >= len(train.labels):
    raise DataError(
      f"{where}: training labels reach {most} in {len(train.labels)} images; classes are numbered from 0."
    )
  num_classes = num_classes or most + 1
  if num_classes < 2:
    raise DataError(f"{where}: training labels hold one class; a classifier needs two or more.")
  test = _split(*test, num_classes, f"{where}: test")
  if train.images.shape[1:] != test.images.shape[1:]:
    raise DataError(
      f"{where}: training images are {train.images.shape[1:]}, test images {test.images.shape[1:]}; they must agree."
    )
  return train, test, num_classes


def _digits(_: str, __: str) -> tuple[Split, Split, int]:
  from sklearn.datasets import load_digits  # slow to import, and only this source needs it

  bunch = load_digits()
  whole = _split((bunch.images / 16.0).astype(np.float32), bunch.target, 10, "digits")
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(whole.labels))
  return whole.take(np.sort(order[_DIGITS_TEST_SIZE:])), whole.take(np.sort(order[:_DIGITS_TEST_SIZE])), 10


def _tfds(name: str, data_dir: str) -> tuple[Split, Split, int]:
  where = f"data.source={f'tfds:{name}'!r}"
  try:
    *arrays, num_classes = tfds.read(name, data_dir)
  except DataError as error:
    raise DataError(f"{where}: {error}") from None
  return _train_and_test(*arrays, num_classes, where)


def _is_file(path: Path) -> bool:
  try:
    return path.is_file()
  except OSError:  # a name that is too long, or a folder that may not be looked into
    return False


# (training images, training labels, test images, test labels), the second as Keras names them
_NPZ_NAMES = (
  ("train_images", "train_labels", "test_images", "test_labels"),
  ("x_train", "y_train", "x_test", "y_test"),
)


def _npz(path: str, _: str) -> tuple[Split, Split, int]:
  where = f"data.source={f'npz:{path}'!r}"
  if not _is_file(Path(path)):
    raise DataError(f"{where}: there is no such file.")
  try:
    arrays = npz_idx.read_npz(Path(path), _NPZ_NAMES)
  except DataError as error:
    raise DataError(f"{where}: {error}") from None
  return _train_and_test(arrays[:2], arrays[2:], None, where)


_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx(directory: str, _: str) -> tuple[Split, Split, int]:
  where = f"data.source={f'idx:{directory}'!r}"
  arrays = []
  for name in _IDX_FILES:
    found = [p for p in (Path(directory, name), Path(directory, name + ".gz")) if _is_file(p)]
    if not found:
      raise DataError(f"{where}: {name} (or {name}.gz) is not there; the four files are {list(_IDX_FILES)}.")
    try:
      arrays.append(npz_idx.read_idx(found[0]))
    except DataError as error:
      raise DataError(f"{where}: {found[0].name}: {error}") from None
  return _train_and_test(arrays[:2], arrays[2:], None, where)


def _own(name: str) -> tuple[Split, Split, int]:
  """The arrays that the user's function returns, under the names of an npz."""
  where = f"data.source={name!r}"
  try:
    found = user_code.function(name)()
  except user_code.UserCodeError as error:
    raise DataError(f"data.source={error}") from error
  names = next((names for names in _NPZ_NAMES if isinstance(found, Mapping) and set(names) <= set(found)), None)
  if names is None:
    got = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
    raise DataError(f"{where} returns {got}; it must return a mapping with the arrays {list(_NPZ_NAMES[0])}.")
  try:
    arrays = [np.asarray(found[name]) for name in names]
  except (TypeError, ValueError) as error:  # lists of unequal lengths
    raise DataError(f"{where} returns what is no array: {npz_idx.reason(error)}") from None
  return _train_and_test(arrays[:2], arrays[2:], None, where)


SOURCES: dict[str, Callable[[str, str], tuple[Split, Split, int]]] = {
  "digits": _digits,
  "tfds": _tfds,
  "npz": _npz,
  "idx": _idx,
}
_SPELLINGS = ("digits", "tfds:NAME", "npz:PATH", "idx:DIR", "package.module:function")


def is_users(source: str) -> bool:
  """Whether a source is a function of the user's, "package.module:function", whose module `load` would import."""
  return user_code.is_name(source) and source.partition(":")[0] not in SOURCES


def load(source: str, *, data_dir: str = "", validation_size: int, train_size: int = 0) -> Dataset:
  """Loads a data set and holds a validation split out of its training split.

  Args:
    source: "digits", "tfds:NAME", "npz:PATH", "idx:DIR", or "package.module:function", a function without arguments
      that returns a mapping of the arrays of an npz; its module is imported.
    data_dir: where TFDS keeps its data; empty is its own default.
    validation_size: number of training images to hold out, 1 or more.
    train_size: number of the others to train on, drawn by a fixed permutation; 0 is all.

  Raises:
    DataError: an unknown source (with the choices), a data set that is not there (with the command that prepares it),
      or arrays of the wrong shape, type or range.
  """
  kind, _, argument = source.partition(":")
  if not is_users(source) and (kind not in SOURCES or bool(argument) == (kind == "digits")):
    raise DataError(f"data.source={source!r} is unknown; choose from {list(_SPELLINGS)}.")
  whole, test, num_classes = _own(source) if is_users(source) else SOURCES[kind](argument, data_dir)
  count = len(whole.labels)
  if not 1 <= validation_size < count:
    raise DataError(
      f"data.validation_size={validation_size} must be in [1, {count - 1}]: {source!r} has {count} training images."
    )
  if not 0 <= train_size <= count - validation_size:
    raise DataError(
      f"data.train_size={train_size} must be in [0, {count - validation_size}]: {source!r} has {count} training "
      f"images, {validation_size} of them for validation."
    )
  order = np.random.default_rng(_SPLIT_SEED).permutation(count)
  held_out, rest = np.sort(order[:validation_size]), order[validation_size:]
  rest = np.sort(rest[: train_size or None])
  return Dataset(whole.take(rest), whole.take(held_out), test, num_classes)


def load_for(config: Mapping[str, Any]) -> Dataset:
  """`load` with the fields of a configuration's `data`."""
  sizes = {name: config[name] for name in ("validation_size", "train_size")}
  return load(config["source"], data_dir=config["data_dir"], **sizes)
