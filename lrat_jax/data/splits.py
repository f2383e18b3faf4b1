"""Data sets: splits of images and labels, held in memory or read on demand."""

import hashlib
from typing import NamedTuple

import numpy as np

from lrat_jax.data.corruptions import CorruptedImages
from lrat_jax.data.streams import Moment, Stream

SPLITS = ("test", "validation", "train")
# The number of images that identify a large data set, in memory or streamed; for a smaller one all images are used.
_SAMPLE = 1024
_LARGE = 2**28
# The number of images that are read at once.
_CHUNK = 256


class Split(NamedTuple):
  """Images of one split.

  Attributes:
    images: uint8 [n, h, w, c] in 0..255, or float32 in [0, 1]; a `Stream` reads them on demand.
    labels: int32 [n]; for training also float32 [n, classes], distributions over the classes.
    indices: int32 [n], each image's index in the source's own split, which identifies it in every result.
  """

  images: np.ndarray
  labels: np.ndarray
  indices: np.ndarray

  def take(self, rows: np.ndarray, moment: Moment | None = None) -> "Split":
    """Some rows, in memory. Streams with random crops return the crops of a training `moment`, else the centres."""
    images = self.images.read(rows, moment) if isinstance(self.images, Stream) else self.images[rows]
    return Split(images, self.labels[rows], self.indices[rows])

  def select(self, rows: np.ndarray) -> "Split":
    """Some rows; if the images are streamed, they are not read yet."""
    images = self.images.select(rows) if isinstance(self.images, Stream) else self.images[rows]
    return Split(images, self.labels[rows], self.indices[rows])

  def in_memory(self) -> "Split":
    """The same split with all images in memory."""
    return self._replace(images=np.asarray(self.images))

  @property
  def is_streamed(self) -> bool:
    return isinstance(self.images, Stream)

  @property
  def nbytes(self) -> int:
    """The size of the images in memory, in bytes, also if they are streamed."""
    return self.images.nbytes

  def fingerprint(self, most: int | None = None) -> str:
    """Shape and type of the images, and a digest of the split: "uint8 [500, 8, 8, 1] sha256:0123456789abcdef".

    With `most`, or if the images take more than 256 MiB, the digest is computed from an evenly spread sample of the
    images, and from all labels and indices.
    """
    count, digest = len(self.labels), hashlib.sha256()
    if most is None and self.nbytes > _LARGE:
      most = _SAMPLE
    rows = np.arange(count) if most is None or count <= most else np.linspace(0, count - 1, most).astype(int)
    for start in range(0, len(rows), _CHUNK):
      digest.update(np.ascontiguousarray(self.images[rows[start : start + _CHUNK]]).tobytes())
    for array in (self.labels, self.indices):
      digest.update(np.ascontiguousarray(array).tobytes())
    return f"{self.images.dtype} {list(self.images.shape)} sha256:{digest.hexdigest()[:16]}"


class Dataset(NamedTuple):
  """Three splits, of which `train` and `validation` are empty if not read; the number of classes, None if unknown.

  Attributes:
    corrupted: corrupted copies of the test split.
    extra: additional training images, with indices after those of `train` and `validation`; None if there are none.
    loading: whether images are streamed and why, in one line; empty if there was no choice.
    listed: the rows of the test split that are evaluated, in this order; None for all.
  """

  train: Split
  validation: Split
  test: Split
  num_classes: int | None
  corrupted: CorruptedImages | None = None
  extra: Split | None = None
  loading: str = ""
  listed: np.ndarray | None = None

  def split(self, name: str) -> Split:
    """One of `SPLITS`."""
    return {"test": self.test, "validation": self.validation, "train": self.train}[name]

  def evaluated(self, name: str, num_images: int = 0) -> Split:
    """The images of one of `SPLITS` that are evaluated: all, or the first `num_images` of them."""
    split = self.split(name)
    rows = np.arange(len(split.labels)) if self.listed is None or name != "test" else self.listed
    return split.select(rows[: num_images or None])

  @property
  def image_shape(self) -> tuple[int, ...]:
    return self.test.images.shape[1:]

  def fingerprint(self) -> dict[str, str]:
    """Shape, type and digest of each split that was read: two data sets are the same if these are equal."""
    splits = {name: split for name in SPLITS if len((split := self.split(name)).labels)}
    found = {name: split.fingerprint() for name, split in splits.items()}
    return found if self.extra is None else found | {"extra": self.extra.fingerprint(_SAMPLE)}
