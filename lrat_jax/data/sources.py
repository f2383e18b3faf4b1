"""Where images come from: digits, TFDS, npz archives, idx files, folders, the user's function; arrays held in memory.

A data set is three splits of uint8 images (or floats in [0, 1]) with integer labels. The validation split is cut from
the training split by a fixed permutation, so that runs with different seeds hold out the same images.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from lrat_jax.core import user_code
from lrat_jax.core.arguments import ROUNDING, warn_of_layout
from lrat_jax.data import image_folder, npz_idx, tfds
from lrat_jax.data.npz_idx import DataError
from lrat_jax.data.splits import Dataset, Split

_SPLIT_SEED = 0
_DIGITS_TEST_SIZE = 500
# What int32 holds.
_MOST_LABELS = 2**31 - 1

Arrays = tuple[np.ndarray, np.ndarray]


def _as_images(images: np.ndarray, where: str) -> np.ndarray:
  """[n, h, w] or [n, h, w, c] as uint8, or as float32 in [0, 1]."""
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim != 4 or 0 in images.shape:
    raise DataError(f"{where} has shape {images.shape}; images are [n, h, w] or [n, h, w, c], none of them 0.")
  warn_of_layout(images.shape)
  if images.dtype == np.uint8:
    return images
  if not np.issubdtype(images.dtype, np.floating):
    raise DataError(f"{where} is {images.dtype}; images are uint8 in 0..255 or floats in [0, 1].")
  low, high = float(images.min()), float(images.max())
  if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also where one is NaN
    raise DataError(f"{where} holds floats from {low:.8g} to {high:.8g}; float images are in [0, 1].")
  return np.clip(images.astype(np.float32), 0, 1)


# (training split, test split, number of classes); no training split where none was asked for, no number if unknown.
_Found = tuple[Split | None, Split, int | None]


def check_labels(labels: np.ndarray, count: int, num_classes: int | None, where: str) -> np.ndarray:
  """int32 [count] of integers [count] or [count, 1] in 0..num_classes - 1. Raises DataError, which names `where`."""
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


def _split(arrays: Arrays, num_classes: int | None, where: str) -> Split:
  images, labels = arrays
  images = _as_images(images, f"{where} images")
  labels = check_labels(labels, len(images), num_classes, f"{where} labels")
  return Split(images, labels, np.arange(len(images), dtype=np.int32))


def _train_and_test(
  train: Arrays | None, test: Arrays, num_classes: int | None, where: str
) -> tuple[Split | None, Split, int | None]:
  """Checked splits of arrays (images, labels).

  Without a class count, the training labels say how many there are. Without training arrays only the model can say it.
  """
  if train is None:
    return None, _split(test, num_classes, f"{where}: test"), num_classes
  checked = _split(train, num_classes, f"{where}: training")
  most = int(checked.labels.max())
  if num_classes is None and most >= len(checked.labels):
    raise DataError(
      f"{where}: training labels reach {most} in {len(checked.labels)} images; classes are numbered from 0."
    )
  num_classes = num_classes or most + 1
  if num_classes < 2:
    raise DataError(f"{where}: training labels hold one class; a classifier needs two or more.")
  tested = _split(test, num_classes, f"{where}: test")
  if checked.images.shape[1:] != tested.images.shape[1:]:
    raise DataError(
      f"{where}: training images are {checked.images.shape[1:]}, test images {tested.images.shape[1:]}; "
      "they must agree."
    )
  return checked, tested, num_classes


def _digits(_: str, __: str, ___: bool) -> _Found:
  # What `sklearn.datasets.load_digits` reads, whose import takes four seconds. A row is 64 pixels in 0..16 and a label.
  path = Path(importlib.util.find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
  rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)
  whole = _split(((rows[:, :-1].reshape(-1, 8, 8) / 16.0).astype(np.float32), rows[:, -1].astype(int)), 10, "digits")
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(whole.labels))
  return whole.take(np.sort(order[_DIGITS_TEST_SIZE:])), whole.take(np.sort(order[:_DIGITS_TEST_SIZE])), 10


def _tfds(name: str, data_dir: str, trains: bool) -> _Found:
  where = f"data.source={f'tfds:{name}'!r}"
  try:
    train, test, num_classes = tfds.read(name, data_dir, train=trains)
  except DataError as error:
    raise DataError(f"{where}: {error}") from None
  return _train_and_test(train, test, num_classes, where)


def _is_file(path: Path) -> bool:
  try:
    return path.is_file()
  except OSError:  # a name that is too long, or a folder that may not be looked into
    return False


# (test images, test labels, training images, training labels), the second as Keras names them
_NPZ_NAMES = (
  ("test_images", "test_labels", "train_images", "train_labels"),
  ("x_test", "y_test", "x_train", "y_train"),
)
_TEST_NAMES = (*(names[:2] for names in _NPZ_NAMES), ("images", "labels"))


def _npz(path: str, _: str, trains: bool) -> _Found:
  where = f"data.source={f'npz:{path}'!r}"
  if not _is_file(Path(path)):
    raise DataError(f"{where}: there is no such file.")
  try:
    test, labels, *train = npz_idx.read_npz(Path(path), _NPZ_NAMES if trains else _TEST_NAMES)
  except DataError as error:
    raise DataError(f"{where}: {error}") from None
  return _train_and_test((train[0], train[1]) if trains else None, (test, labels), None, where)


_IDX_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "train-images-idx3-ubyte", "train-labels-idx1-ubyte")


def _idx(directory: str, _: str, trains: bool) -> _Found:
  where = f"data.source={f'idx:{directory}'!r}"
  names, arrays = _IDX_FILES if trains else _IDX_FILES[:2], []
  for name in names:
    found = [p for p in (Path(directory, name), Path(directory, name + ".gz")) if _is_file(p)]
    if not found:
      raise DataError(f"{where}: {name} (or {name}.gz) is not there; needed are {list(names)}.")
    try:
      arrays.append(npz_idx.read_idx(found[0]))
    except DataError as error:
      raise DataError(f"{where}: {found[0].name}: {error}") from None
  test, labels, *train = arrays
  return _train_and_test((train[0], train[1]) if trains else None, (test, labels), None, where)


def _images(directory: str, _: str, trains: bool) -> _Found:
  where = f"data.source={f'images:{directory}'!r}"
  if trains:
    raise DataError(f"{where}: a folder of images is evaluated on, by --mode=evaluate or --model, not trained on.")
  try:
    images, labels, num_classes = image_folder.read(Path(directory))
  except DataError as error:
    raise DataError(f"{where}: {error}") from None
  return _train_and_test(None, (images, labels), num_classes, where)


def _own(name: str, trains: bool) -> _Found:
  """The arrays that the user's function returns, under the names of an npz."""
  where, choices = f"data.source={name!r}", _NPZ_NAMES if trains else _TEST_NAMES
  try:
    found = user_code.function(name)()
  except user_code.UserCodeError as error:
    raise DataError(f"data.source={error}") from error
  names = next((names for names in choices if isinstance(found, Mapping) and set(names) <= set(found)), None)
  if names is None:
    got = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
    raise DataError(f"{where} returns {got}; it must return a mapping with the arrays {list(choices[0])}.")
  try:
    test, labels, *train = (np.asarray(found[name]) for name in names)
  except (TypeError, ValueError) as error:  # lists of unequal lengths
    raise DataError(f"{where} returns what is no array: {npz_idx.reason(error)}") from None
  return _train_and_test((train[0], train[1]) if trains else None, (test, labels), None, where)


SOURCES: dict[str, Callable[[str, str, bool], _Found]] = {
  "digits": _digits,
  "tfds": _tfds,
  "npz": _npz,
  "idx": _idx,
  "images": _images,
}
_SPELLINGS = ("digits", "tfds:NAME", "npz:PATH", "idx:DIR", "images:DIR", "package.module:function")


def is_users(source: str) -> bool:
  """Whether a source is a function of the user's, "package.module:function", whose module `load` would import."""
  return user_code.is_name(source) and source.partition(":")[0] not in SOURCES


def load(
  source: str, *, data_dir: str = "", validation_size: int = 1, train_size: int = 0, trains: bool = True
) -> Dataset:
  """Loads a data set and holds a validation split out of its training split.

  Args:
    source: "digits", "tfds:NAME", "npz:PATH", "idx:DIR", "images:DIR" (to evaluate on), or "package.module:function",
      a function without arguments that returns a mapping of the arrays of an npz; its module is imported.
    data_dir: where TFDS keeps its data; empty is its own default.
    validation_size: number of training images to hold out, 1 or more.
    train_size: number of the others to train on, drawn by a fixed permutation; 0 is all.
    trains: False reads the test split alone: the others are empty, sizes count for nothing, and an npz may hold just
      "test_images" and "test_labels" (or "images" and "labels").

  Raises:
    DataError: an unknown source (with the choices), a data set that is not there (with the command that prepares it),
      or arrays of the wrong shape, type or range.
  """
  kind, _, argument = source.partition(":")
  argument = os.path.expanduser(argument)  # noqa: PTH111 (of a user that is not there it is left as it is)
  if not is_users(source) and (kind not in SOURCES or bool(argument) == (kind == "digits")):
    raise DataError(f"data.source={source!r} is unknown; choose from {list(_SPELLINGS)}.")
  whole, test, num_classes = _own(source, trains) if is_users(source) else SOURCES[kind](argument, data_dir, trains)
  if not trains or whole is None:
    nothing = test.take(np.arange(0))
    return Dataset(nothing, nothing, test, num_classes)
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
