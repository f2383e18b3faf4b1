"""Mixtures: images of an extra source, such as generated ones, as a fixed share of every training batch.

One or several npz files as written by EDM's samplers and RobustBench's papers, with "image" uint8 [n, h, w, c] and
"label", are memory-mapped, so that only the images of a batch are read.
"""

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from lrat_jax.data import found, npz_idx, sources
from lrat_jax.data.augment import to_float
from lrat_jax.data.npz_idx import DataError
from lrat_jax.data.splits import Dataset, Split
from lrat_jax.data.streams import JoinedRecords, Loading, Moment, Stream, stream_of

_NAMES = ("image", "label")
_MOST_INDICES = 2**31


class Mixture(NamedTuple):
  """A training split and an extra one with a fixed share of every batch. Rows are numbered through both.

  Attributes:
    primary: its number of images is the length of an epoch.
    extra: images of the same shape.
    fraction: the share of extra images in a batch, in (0, 1), rounded to the nearest image.
  """

  primary: Split
  extra: Split
  fraction: float

  @property
  def nbytes(self) -> int:
    """The size of the images in bytes, in the primary split's type."""
    return self.primary.nbytes + self.extra.images.size * self.primary.images.dtype.itemsize

  def whole(self) -> Split:
    """All images in memory."""
    return self.take(np.arange(len(self.primary.labels) + len(self.extra.labels)))

  def is_extra(self, batch_size: int) -> np.ndarray:
    """bool [batch_size]: the positions of extra images in a batch, spread evenly so that devices share them."""
    ends = np.arange(batch_size + 1) * num_extra(self.fraction, batch_size) // batch_size
    return ends[1:] > ends[:-1]

  @property
  def is_streamed(self) -> bool:
    return self.primary.is_streamed

  def take(self, rows: np.ndarray, moment: Moment | None = None) -> Split:
    """Rows of both splits, in the primary's image type; rows from `len(primary.labels)` on are extra images.

    Labels are float32 [k, classes] if those of either split are. `moment` is as in `Split.take`.
    """
    count = len(self.primary.labels)
    is_extra = rows >= count
    own, other = self.primary.take(rows[~is_extra], moment), self.extra.take(rows[is_extra] - count)
    images = other.images if own.images.dtype == np.uint8 else to_float(np.asarray(other.images))
    parts = (own.images, images), _alike(own.labels, other.labels), (own.indices, other.indices)
    return Split(*(_merged(is_extra, *part) for part in parts))


def _alike(*labels: np.ndarray) -> list[np.ndarray]:
  """Labels of several sources, all as distributions if those of any source are."""
  classes = [array.shape[1] for array in labels if array.ndim == 2]
  return [array if array.ndim == 2 or not classes else np.eye(classes[0], dtype=np.float32)[array] for array in labels]


def _merged(is_extra: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
  merged = np.empty((len(is_extra), *own.shape[1:]), own.dtype)
  merged[~is_extra], merged[is_extra] = own, other
  return merged


def num_extra(fraction: float, batch_size: int) -> int:
  """The number of images in a batch that are from the extra source."""
  return round(fraction * batch_size)


def _files(path: str) -> list[Path]:
  """The file with this path, or else the files that it matches as a pattern, in the order of their names."""
  path = os.path.expanduser(path)  # noqa: PTH111 (no such user: left as it is)
  named = sources.is_file(Path(path))
  return [Path(path)] if named else sorted(map(Path, glob.glob(path))) or [Path(path)]  # noqa: PTH207 (absolute too)


def _open_file(path: Path, image_shape: tuple[int, ...], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
  """The (images, labels) of one file."""
  images, labels = npz_idx.map_npz(path, [_NAMES])
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != image_shape:
    expected = ", ".join(map(str, ("n", *image_shape)))
    raise DataError(f"image is {images.dtype} {images.shape}; it must be uint8 ({expected}).")
  if not len(images):
    raise DataError("it contains no images.")
  return images, found.as_labels(np.asarray(labels), len(images), num_classes, "its labels")


def open_extra(source: str, first_index: int, image_shape: tuple[int, ...], num_classes: int) -> Split:
  """The images of an extra source, memory-mapped from their files; those of compressed files are in memory.

  Args:
    source: "npz:PATH", with "image" uint8 [n, h, w, c] and "label", int [n] or float [n, num_classes] of distributions.
      If PATH is not a file but a pattern such as "part*.npz", all files that match it, one after the other.
    first_index: the index of its first image.
    image_shape, num_classes: of the data set that it is added to.

  Raises:
    DataError: another kind of source, a missing file, wrong arrays, images of another shape, or too many images.
  """
  kind, _, path = source.partition(":")
  where, parts = f"data.extra.source={source!r}", []
  if kind != "npz" or not path:
    raise DataError(f"{where} is unknown; it must be npz:PATH.")
  paths = _files(path)
  for file in paths:
    try:
      parts.append(_open_file(file, image_shape, num_classes))
    except DataError as error:
      raise DataError(f"{where}: {f'{file.name}: ' if len(paths) > 1 else ''}{error}") from None
  arrays, labels = zip(*parts, strict=True)
  images = arrays[0] if len(arrays) == 1 else stream_of(JoinedRecords(arrays))
  if len(images) >= _MOST_INDICES - first_index:
    raise DataError(
      f"{where} contains {len(images):,} images; together with the data set's own, there must be fewer than 2^31."
    )
  indices = np.arange(first_index, first_index + len(images), dtype=np.int32)
  return Split(images, np.concatenate(_alike(*labels)), indices)


def bytes_in_memory(extra: Split) -> int:
  """The size in bytes of those images of an extra source that are not memory-mapped."""
  images: Any = extra.images
  arrays = cast(JoinedRecords, images.records).arrays if isinstance(images, Stream) else (images,)
  return sum(array.nbytes for array in arrays if not isinstance(array, np.memmap))


def training_source(dataset: Dataset, fraction: float) -> Split | Mixture:
  """The split or mixture from which training batches are made."""
  return dataset.train if dataset.extra is None else Mixture(dataset.train, dataset.extra, fraction)


def load_for(config: Mapping[str, Any], *, trains: bool = True) -> Dataset:
  """`sources.load` with the fields of a configuration's `data`, and the extra source if there is one to train on.

  The extra images' indices begin after the largest index of the training and validation images.
  """
  sizes = {name: config[name] for name in ("validation_size", "train_size")}
  fields = {name: config[name] for name in ("image_size", "random_resized_crop", "workers")}
  loading = Loading(config["loading"], **fields, on_devices=config["placement"] == "device")
  dataset = sources.load(config["source"], data_dir=config["data_dir"], trains=trains, loading=loading, **sizes)
  source = config["extra"]["source"]
  if not trains or not source or dataset.num_classes is None:
    return dataset
  first = 1 + max(int(split.indices.max()) for split in (dataset.train, dataset.validation))
  return dataset._replace(extra=open_extra(source, first, dataset.image_shape, dataset.num_classes))
