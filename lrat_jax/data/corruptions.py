"""CIFAR-10-C and data of its form: corrupted copies of a test split, of which only the images asked for are read."""

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
  """The files of a folder: KIND.npy, uint8 [5 n, h, w, c], n images at severity 1, then the same at 2, and so on.

  Attributes:
    directory: as it was given.
    kinds: the names of the files.
    image_shape: [h, w, c] of the test images.
    indices: int [n], rising, of the test images in their source's own split.
    places: int [n], where each one's copy stands among the n.
  """

  directory: str
  kinds: tuple[str, ...]
  image_shape: tuple[int, ...]
  indices: np.ndarray
  places: np.ndarray

  def check(self, kind: str) -> None:
    """Refuses a kind whose file is not there, or holds no copies of the test images. Raises DataError."""
    self._open(kind)

  def read(self, kind: str, severity: int, indices: np.ndarray) -> np.ndarray:
    """The copies uint8 [k, h, w, c] of the test images with those indices [k]. Raises as `check` does."""
    places = self.places[np.searchsorted(self.indices, indices)]
    return np.asarray(self._open(kind)[(severity - 1) * len(self.places) + places])

  def version(self, kind: str) -> str:
    """Changes where the kind's file does."""
    found = self._path(kind).stat()
    return f"{kind} of {found.st_size} bytes at {found.st_mtime_ns}"

  def _path(self, kind: str) -> Path:
    return Path(self.directory) / f"{kind}.npy"

  def _open(self, kind: str) -> np.ndarray:
    where = f"data.corruptions={self.directory!r}"
    if kind not in self.kinds:
      raise DataError(f"{where} holds no {kind}.npy; its kinds are {list(self.kinds)}.")
    images = _map(self._path(kind), where)
    expected = (SEVERITIES * len(self.places), *self.image_shape)
    if images.shape != expected or images.dtype != np.uint8:
      raise DataError(f"{where}: {kind}.npy is {images.dtype} {images.shape}; it must be uint8 {expected}.")
    return images


def _map(path: Path, where: str) -> np.ndarray:
  """The array of an npy file, of which nothing is read yet."""
  try:
    return npz_idx.map_npy(path)
  except DataError as error:
    raise DataError(f"{where}: {error}") from None


def _check_labels(labels: np.ndarray, places: np.ndarray, expected: np.ndarray, where: str) -> None:
  """Refuses labels [5 n] that are not those expected [n], five times over and in that order."""
  count = len(expected)
  if labels.shape != (SEVERITIES * count,) or not np.issubdtype(labels.dtype, np.integer):
    raise DataError(
      f"{where}: {_LABELS}.npy is {labels.dtype} {labels.shape}; {count} test images at {SEVERITIES} severities have "
      f"integers {(SEVERITIES * count,)}."
    )
  copies = np.reshape(labels, (SEVERITIES, count))[:, places]
  if len(different := np.argwhere(copies != expected)):
    severity, image = different[0]
    raise DataError(
      f"{where}: {_LABELS}.npy says {copies[severity, image]} of test image {image} at severity {severity + 1}, the "
      f"data set says {expected[image]} ({len(different):,} of {labels.size:,} differ): it is of other images, or "
      "they are in another order."
    )


def open_corrupted(
  directory: str,
  labels: np.ndarray,
  indices: np.ndarray,
  image_shape: tuple[int, ...],
  places: np.ndarray | None = None,
) -> CorruptedImages:
  """Corrupted copies of a test split, by the labels that go with them.

  Args:
    directory: holds "labels.npy" and a file for each kind, as CIFAR-10-C, CIFAR-100-C and their like are published.
    labels, indices: int [n], of the whole test split; indices rise.
    image_shape: [h, w, c], of its images.
    places: int [n], where each of them stands in the published order; None is the split's own order.

  Raises:
    DataError: no such folder, no labels in it, or labels that are not those of the test split in that order.
  """
  where, folder = f"data.corruptions={directory!r}", Path(directory)
  try:
    names = sorted(path.stem for path in folder.iterdir() if path.suffix == ".npy")
  except OSError as error:
    raise DataError(f"{where}: {error.strerror}.") from None
  if _LABELS not in names:
    raise DataError(f"{where} holds no {_LABELS}.npy, only {names}.")
  places = np.arange(len(labels)) if places is None else places
  _check_labels(_map(folder / f"{_LABELS}.npy", where), places, labels, where)
  kinds = tuple(name for name in names if name != _LABELS)
  return CorruptedImages(directory, kinds, image_shape, indices, places)


def corrupted_for(
  config: Mapping[str, Any], labels: np.ndarray, indices: np.ndarray, image_shape: tuple[int, ...]
) -> CorruptedImages | None:
  """`open_corrupted` with the fields of a configuration's `data`; None where it names no folder.

  TFDS shuffles what it prepares; where its examples tell their original places, these are used.
  """
  directory = os.path.expanduser(config["corruptions"])  # noqa: PTH111 (no such user: left as it is)
  if not directory:
    return None
  kind, _, name = config["source"].partition(":")
  places = original_places(name, config["data_dir"]) if kind == "tfds" else None
  return open_corrupted(directory, labels, indices, image_shape, places)
