"""CIFAR-10-C and data in its format: corrupted copies of a test split; only the requested images are read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrat_jax.data import npz_idx
from lrat_jax.data.npz_idx import DataError
from lrat_jax.data.tfds import original_places

SEVERITIES = 5
_LABELS = "labels"


class CorruptedImages(NamedTuple):
  """The files of a folder: KIND.npy, uint8 [5 n, h, w, c], n images at severity 1, then the same n at 2, and so on.

  Attributes:
    directory: the folder, as it was given.
    kinds: the names of the files, without ".npy".
    image_shape: [h, w, c] of the test images.
    indices: int [n], the indices of the test images in their source's own split, in increasing order.
    places: int [n], the position of each test image's copy among the n.
  """

  directory: str
  kinds: tuple[str, ...]
  image_shape: tuple[int, ...]
  indices: np.ndarray
  places: np.ndarray

  def check(self, kind: str) -> None:
    """Raises DataError if the kind's file is missing or does not hold copies of the test images."""
    self._open(kind)

  def read(self, kind: str, severity: int, indices: np.ndarray) -> np.ndarray:
    """The copies uint8 [k, h, w, c] of the test images with the given indices [k]. Raises as `check` does."""
    places = self.places[np.searchsorted(self.indices, indices)]
    return np.asarray(self._open(kind)[(severity - 1) * len(self.places) + places])

  def version(self, kind: str) -> str:
    """Size and modification time of the kind's file as text, which changes if the file changes."""
    found = self._path(kind).stat()
    return f"{kind} of {found.st_size} bytes at {found.st_mtime_ns}"

  def _path(self, kind: str) -> Path:
    return Path(self.directory) / f"{kind}.npy"

  def _open(self, kind: str) -> np.ndarray:
    where = f"data.corruptions={self.directory!r}"
    if kind not in self.kinds:
      raise DataError(f"{where} does not contain {kind}.npy; its kinds are {list(self.kinds)}.")
    images = _map(self._path(kind), where)
    expected = (SEVERITIES * len(self.places), *self.image_shape)
    if images.shape != expected or images.dtype != np.uint8:
      raise DataError(f"{where}: {kind}.npy is {images.dtype} {images.shape}; it must be uint8 {expected}.")
    return images


def _map(path: Path, where: str) -> np.ndarray:
  """Maps the array of an npy file, without reading it yet."""
  try:
    return npz_idx.map_npy(path)
  except DataError as error:
    raise DataError(f"{where}: {error}") from None


def _check_labels(labels: np.ndarray, places: np.ndarray, expected: np.ndarray, where: str) -> None:
  """Raises DataError unless the labels [5 n] are the expected labels [n] at `places`, once for each severity."""
  count = len(expected)
  if labels.shape != (SEVERITIES * count,) or not np.issubdtype(labels.dtype, np.integer):
    raise DataError(
      f"{where}: {_LABELS}.npy is {labels.dtype} {labels.shape}; it must be integers {(SEVERITIES * count,)}, "
      f"for {count} test images at {SEVERITIES} severities."
    )
  copies = np.reshape(labels, (SEVERITIES, count))[:, places]
  if len(different := np.argwhere(copies != expected)):
    severity, image = different[0]
    raise DataError(
      f"{where}: {_LABELS}.npy says {copies[severity, image]} for test image {image} at severity {severity + 1}, but "
      f"the data set says {expected[image]} ({len(different):,} of {labels.size:,} differ): the labels are those of "
      "other images, or are in another order."
    )


def open_corrupted(
  directory: str,
  labels: np.ndarray,
  indices: np.ndarray,
  image_shape: tuple[int, ...],
  places: np.ndarray | None = None,
) -> CorruptedImages:
  """Opens corrupted copies of a test split, whose labels must be those of the split.

  Args:
    directory: holds "labels.npy" and a file for each kind, as CIFAR-10-C, CIFAR-100-C and similar data are published.
    labels, indices: int [n], of the whole test split; indices in increasing order.
    image_shape: [h, w, c], of its images.
    places: int [n], the position of each image in the published order; None for the split's own order.

  Raises:
    DataError: the folder is missing, has no labels, or has labels that are not those of the test split in that order.
  """
  where, folder = f"data.corruptions={directory!r}", Path(directory)
  try:
    names = sorted(path.stem for path in folder.iterdir() if path.suffix == ".npy")
  except OSError as error:
    raise DataError(f"{where}: {error.strerror}.") from None
  if _LABELS not in names:
    raise DataError(f"{where} does not contain {_LABELS}.npy, only {names}.")
  places = np.arange(len(labels)) if places is None else places
  _check_labels(_map(folder / f"{_LABELS}.npy", where), places, labels, where)
  kinds = tuple(name for name in names if name != _LABELS)
  return CorruptedImages(directory, kinds, image_shape, indices, places)


def corrupted_for(
  config: Mapping[str, Any], labels: np.ndarray, indices: np.ndarray, image_shape: tuple[int, ...]
) -> CorruptedImages | None:
  """`open_corrupted` with the fields of a configuration's `data`; None if it names no folder.

  TFDS shuffles the data that it prepares; if its examples contain their original positions, these are used.
  """
  directory = os.path.expanduser(config["corruptions"])  # noqa: PTH111 (no such user: left as it is)
  if not directory:
    return None
  kind, _, name = config["source"].partition(":")
  places = original_places(name, config["data_dir"]) if kind == "tfds" else None
  return open_corrupted(directory, labels, indices, image_shape, places)
