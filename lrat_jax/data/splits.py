"""What a data set is: splits of images and labels, held in memory or read as they are asked for."""

import hashlib
from typing import NamedTuple

import numpy as np

from lrat_jax.data.corruptions import CorruptedImages
from lrat_jax.data.streams import Moment, Stream

SPLITS = ("test", "validation", "train")
# So many images tell a large data set from others, held in memory or streamed; a smaller one is compared whole.
_SAMPLE = 1024
_LARGE = 2**28
# How many are read at once.
_CHUNK = 256


class Split(NamedTuple):
  """Images of one split.

  Attributes:
    images: uint8 [n, h, w, c] in 0..255, or float32 in [0, 1]; a `Stream` reads them as they are asked for.
    labels: int32 [n]; where they are trained on also float32 [n, classes], distributions over the classes.
    indices: int32 [n], each image's index in the source's own split: its name in every result.
  """

  images: np.ndarray
  labels: np.ndarray
  indices: np.ndarray

  def take(self, rows: np.ndarray, moment: Moment | None = None) -> "Split":
    """Some rows, in memory. Of a stream with random crops those of a moment of training, or without one the centres."""
    images = self.images.read(rows, moment) if isinstance(self.images, Stream) else self.images[rows]
    return Split(images, self.labels[rows], self.indices[rows])

  def select(self, rows: np.ndarray) -> "Split":
    """Some rows; of a stream they are not read yet."""
    images = self.images.select(rows) if isinstance(self.images, Stream) else self.images[rows]
    return Split(images, self.labels[rows], self.indices[rows])

  def in_memory(self) -> "Split":
    """The same, with nothing left to read."""
    return self._replace(images=np.asarray(self.images))

  @property
  def is_streamed(self) -> bool:
    return isinstance(self.images, Stream)

  @property
  def nbytes(self) -> int:
    """What the images take, or would take in memory."""
    return self.images.nbytes

  def fingerprint(self, most: int | None = None) -> str:
    """Shape and type of the images, and a digest of all: "uint8 [500, 8, 8, 1] sha256:0123456789abcdef".

    With `most`, and where the images take more than 256 MiB, of a sample of them, spread evenly, and of all labels and
    indices.
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
  """Three splits, those of training empty where not read; the classes, None where unknown.

  Attributes:
    corrupted: copies of the test split.
    extra: images that are trained on beside those of `train`, with indices beyond theirs; None without.
    loading: whether images are streamed and why, a line; empty where there was nothing to choose.
    listed: rows of the test split that are evaluated, in this order; None for all.
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
    """The images of one of `SPLITS` that are evaluated, or the first so many of them."""
    split = self.split(name)
    rows = np.arange(len(split.labels)) if self.listed is None or name != "test" else self.listed
    return split.select(rows[: num_images or None])

  @property
  def image_shape(self) -> tuple[int, ...]:
    return self.test.images.shape[1:]

  def fingerprint(self) -> dict[str, str]:
    """For each split that was read its shape, type and digest: two data sets are the same where these are equal."""
    splits = {name: split for name in SPLITS if len((split := self.split(name)).labels)}
    found = {name: split.fingerprint() for name, split in splits.items()}
    return found if self.extra is None else found | {"extra": self.extra.fingerprint(_SAMPLE)}
