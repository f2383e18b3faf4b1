"""Data sources: digits, TFDS, npz archives, npy and idx files, folders of pictures, user-defined functions.

A data set has three splits of uint8 images (or floats in [0, 1]) with integer labels; the labels of training images may
also be floats [n, classes], distributions over the classes. The validation split is taken from the training split by a
fixed permutation, so that runs with different seeds hold out the same images.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrat_jax.core import user_code
from lrat_jax.data import image_folder, npz_idx, tfds
from lrat_jax.data.found import Found, split_of, train_and_test
from lrat_jax.data.npz_idx import DataError
from lrat_jax.data.splits import Dataset
from lrat_jax.data.streams import IN_MEMORY, Decision, Loading, MappedRecords, Stream, stream_of

_SPLIT_SEED = 0
_DIGITS_TEST_SIZE = 500
# The decision for a source that cannot be streamed.
_IN_MEMORY = Decision()


class _Asked(NamedTuple):
  """The arguments of `load` that every source receives."""

  data_dir: str
  trains: bool
  loading: Loading


def _digits(_: str, __: _Asked) -> Found:
  # `sklearn.datasets.load_digits` reads this file; its import takes four seconds. A row: 64 pixels in 0..16, a label.
  path = Path(importlib.util.find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
  rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)
  whole = split_of(((rows[:, :-1].reshape(-1, 8, 8) / 16.0).astype(np.float32), rows[:, -1].astype(int)), 10, "digits")
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(whole.labels))
  return Found(whole.take(np.sort(order[_DIGITS_TEST_SIZE:])), whole.take(np.sort(order[:_DIGITS_TEST_SIZE])), 10)


def _tfds(name: str, asked: _Asked) -> Found:
  where = f"data.source={f'tfds:{name}'!r}"
  try:
    train, test, num_classes = tfds.read(name, asked.data_dir, asked.loading, train=asked.trains)
    images = [test[0]] if train is None else [test[0], train[0]]
    obstacle = "" if all(isinstance(array, Stream) for array in images) else "are not 8-bit pictures"
    decision = asked.loading.decide(sum(array.nbytes for array in images), obstacle)
  except DataError as error:
    raise DataError(f"{where}: {error}") from None
  return train_and_test(train, test, num_classes, where, decision)


def is_file(path: Path) -> bool:
  """Whether the path is a file that can be accessed."""
  try:
    return path.is_file()
  except OSError:  # a name that is too long, or a folder without permission
    return False


# (test images, test labels, training images, training labels), the second with the names of Keras
_NPZ_NAMES = (
  ("test_images", "test_labels", "train_images", "train_labels"),
  ("x_test", "y_test", "x_train", "y_train"),
)
_TEST_NAMES = (*(names[:2] for names in _NPZ_NAMES), ("images", "labels"))


def _streamed_or_read(
  mapped: list[np.ndarray], read: Callable[[], list[np.ndarray]], loading: Loading
) -> tuple[list[np.ndarray], Decision]:
  """Returns arrays mapped from files (images and labels in turn) as streams, or as `read` reads them."""
  images = mapped[::2]
  if not all(array.dtype == np.uint8 and array.ndim in (3, 4) for array in images):
    obstacle = "are not uint8 images"
  else:
    obstacle = "" if all(isinstance(array, np.memmap) for array in images) else "are compressed"
  decision = loading.decide(sum(array.nbytes for array in images), obstacle)
  if not decision.streams:
    return list(mapped) if obstacle == "are compressed" else list(read()), decision
  as_stream = lambda array: stream_of(MappedRecords(array if array.ndim == 4 else array[..., None]))
  return [np.asarray(array) if index % 2 else as_stream(array) for index, array in enumerate(mapped)], decision


def _npz(path: str, asked: _Asked) -> Found:
  where = f"data.source={f'npz:{path}'!r}"
  if not is_file(Path(path)):
    raise DataError(f"{where}: there is no such file.")
  read = functools.partial(npz_idx.read_npz, Path(path), _NPZ_NAMES if asked.trains else _TEST_NAMES)
  try:
    if asked.loading.kind == "memory":
      arrays, decision = read(), _IN_MEMORY
    else:
      arrays, decision = _streamed_or_read(npz_idx.map_npz(*read.args), read, asked.loading)
  except DataError as error:
    raise DataError(f"{where}: {error}") from None
  return _of_arrays(arrays, where, decision)


def _npy(directory: str, asked: _Asked) -> Found:
  where, folder = f"data.source={f'npy:{directory}'!r}", Path(directory)
  choices = _NPZ_NAMES if asked.trains else _TEST_NAMES
  names = next((names for names in choices if all(is_file(folder / f"{name}.npy") for name in names)), None)
  if names is None:
    raise DataError(f"{where}: it needs the files {[f'{name}.npy' for name in choices[0]]}.")
  try:
    mapped = [npz_idx.map_npy(folder / f"{name}.npy") for name in names]
    arrays, decision = _streamed_or_read(mapped, lambda: [np.array(array) for array in mapped], asked.loading)
  except DataError as error:
    raise DataError(f"{where}: {error}") from None
  return _of_arrays(arrays, where, decision)


def _of_arrays(arrays: Sequence[np.ndarray], where: str, decision: Decision = _IN_MEMORY) -> Found:
  """The contents of the arrays of an npz: test images, test labels, and optionally training images and labels."""
  test, labels, *train = arrays
  return train_and_test((train[0], train[1]) if train else None, (test, labels), None, where, decision)


_IDX_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "train-images-idx3-ubyte", "train-labels-idx1-ubyte")


def _idx(directory: str, asked: _Asked) -> Found:
  where = f"data.source={f'idx:{directory}'!r}"
  names, arrays = _IDX_FILES if asked.trains else _IDX_FILES[:2], []
  for name in names:
    found = [p for p in (Path(directory, name), Path(directory, name + ".gz")) if is_file(p)]
    if not found:
      raise DataError(f"{where}: {name} (or {name}.gz) does not exist; the files {list(names)} are needed.")
    try:
      arrays.append(npz_idx.read_idx(found[0]))
    except DataError as error:
      raise DataError(f"{where}: {found[0].name}: {error}") from None
  return _of_arrays(arrays, where)


def _images(directory: str, asked: _Asked) -> Found:
  where = f"data.source={f'images:{directory}'!r}"
  try:
    train, test = image_folder.open_folders(Path(directory), asked.loading, train=asked.trains)
    decision = asked.loading.decide(sum(folder.images.nbytes for folder in (train, test) if folder))
  except DataError as error:
    raise DataError(f"{where}: {error}") from None
  num_classes = None if test.classes is None else len(test.classes)
  return train_and_test(train and train[:2], test[:2], num_classes, where, decision)


def _own(name: str, trains: bool) -> Found:
  """The contents of the arrays that a user-defined function returns, with the names of an npz."""
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
    arrays = [np.asarray(found[name]) for name in names]
  except (TypeError, ValueError) as error:  # lists of unequal lengths
    raise DataError(f"{where} returns something that is not an array: {npz_idx.reason(error)}") from None
  return _of_arrays(arrays, where)


SOURCES: dict[str, Callable[[str, _Asked], Found]] = {
  "digits": _digits,
  "tfds": _tfds,
  "npz": _npz,
  "npy": _npy,
  "idx": _idx,
  "images": _images,
}
# The sources whose images can be streamed, and those of them whose images can be resized.
_STREAMED = ("npz", "npy", "images", "tfds")
_RESIZED = ("images", "tfds")
_SPELLINGS = ("digits", "tfds:NAME", "npz:PATH", "npy:DIR", "idx:DIR", "images:DIR", "package.module:function")


def is_users(source: str) -> bool:
  """Whether a source is a user-defined function, "package.module:function", whose module `load` would import."""
  return user_code.is_name(source) and source.partition(":")[0] not in SOURCES


def _find(source: str, asked: _Asked) -> Found:
  """The contents of a source, before the validation split is held out."""
  kind, _, argument = source.partition(":")
  argument = os.path.expanduser(argument)  # noqa: PTH111 (of a user that is not there it is left as it is)
  if not is_users(source) and (kind not in SOURCES or bool(argument) == (kind == "digits")):
    raise DataError(f"data.source={source!r} is unknown; choose from {list(_SPELLINGS)}.")
  if asked.loading.kind == "stream" and kind not in _STREAMED:
    raise DataError(f"data.loading='stream': {source!r} cannot be streamed; only {', '.join(_STREAMED)} can.")
  if asked.loading.image_size and kind not in _RESIZED:
    raise DataError(
      f"data.image_size={asked.loading.image_size}: only the pictures of {', '.join(_RESIZED)} can be resized."
    )
  return _own(source, asked.trains) if is_users(source) else SOURCES[kind](argument, asked)


def load(
  source: str,
  *,
  data_dir: str = "",
  validation_size: int = 1,
  train_size: int = 0,
  trains: bool = True,
  loading: Loading = IN_MEMORY,
) -> Dataset:
  """Loads a data set and holds out a validation split from its training split.

  Args:
    source: "digits", "tfds:NAME", "npz:PATH", "npy:DIR" (the arrays of an npz, a file each), "idx:DIR", "images:DIR",
      or "package.module:function", a function without arguments that returns a mapping of the arrays of an npz; its
      module is imported.
    data_dir: where TFDS keeps its data; empty for TFDS's own default.
    validation_size: number of training images to hold out, 1 or more.
    train_size: number of the remaining images to train on, chosen by a fixed permutation; 0 for all.
    trains: False reads only the test split: the others are empty, sizes are ignored, and an npz may hold only
      "test_images" and "test_labels" (or "images" and "labels").
    loading: whether images are streamed, and how pictures are resized. The data set is the same, streamed or not.

  Raises:
    DataError: an unknown source (with the choices), a missing data set (of TFDS with the command that prepares it), or
      arrays of the wrong shape, type or range.
  """
  found = _find(source, _Asked(data_dir, trains, loading))
  dataset = _divided(found if trains else found._replace(train=None), source, validation_size, train_size)
  if found.decision.streams:
    return dataset
  try:
    train, validation, test = (split.in_memory() for split in dataset[:3])
    return dataset._replace(train=train, validation=validation, test=test)
  except DataError as error:
    raise DataError(f"data.source={source!r}: {error}") from None


def _divided(found: Found, source: str, validation_size: int, train_size: int) -> Dataset:
  """The data set of a source, with the validation split held out."""
  whole, test, num_classes, decision = found
  if whole is None:
    nothing = test.take(np.arange(0))
    return Dataset(nothing, nothing, test, num_classes, loading=decision.line)
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
  return Dataset(whole.select(rest), whole.select(held_out), test, num_classes, loading=decision.line)
