"""What a data set is: splits of images and labels, held in memory or mapped from a file."""

import hashlib
from typing import NamedTuple

import numpy as np

from lrat_jax.data.corruptions import CorruptedImages

SPLITS = ("test", "validation", "train")
# So many images of an extra source tell it from others; there may be tens of millions.
_SAMPLE = 1024


class Split(NamedTuple):
  """Images of one split.

  Attributes:
    images: uint8 [n, h, w, c] in 0..255, or float32 in [0, 1].
    labels: int32 [n]; of an extra source also float32 [n, classes], distributions over the classes.
    indices: int32 [n], each image's index in the source's own split: its name in every result.
  """

  images: np.ndarray
  labels: np.ndarray
  indices: np.ndarray

  def take(self, rows: np.ndarray) -> "Split":
    return Split(self.images[rows], self.labels[rows], self.indices[rows])

  @property
  def nbytes(self) -> int:
    """What the images take."""
    return self.images.nbytes

  def fingerprint(self, most: int | None = None) -> str:
    """Shape and type of the images, and a digest of all: "uint8 [500, 8, 8, 1] sha256:0123456789abcdef".

    With `most`, of so many images spread evenly, where there are more, and of all labels and indices.
    """
    count, digest = len(self.labels), hashlib.sha256()
    images = self.images if most is None or count <= most else self.images[np.linspace(0, count - 1, most).astype(int)]
    for array in (images, self.labels, self.indices):
      digest.update(np.ascontiguousarray(array).tobytes())
    return f"{self.images.dtype} {list(self.images.shape)} sha256:{digest.hexdigest()[:16]}"


class Dataset(NamedTuple):
  """Three splits, those of training empty where not read; the classes, None where unknown.

  Attributes:
    corrupted: copies of the test split.
    extra: images that are trained on beside those of `train`, with indices beyond theirs; None without.
  """

  train: Split
  validation: Split
  test: Split
  num_classes: int | None
  corrupted: CorruptedImages | None = None
  extra: Split | None = None

  def split(self, name: str) -> Split:
    """One of `SPLITS`."""
    return {"test": self.test, "validation": self.validation, "train": self.train}[name]

  @property
  def image_shape(self) -> tuple[int, ...]:
    return self.test.images.shape[1:]

  def fingerprint(self) -> dict[str, str]:
    """For each split that was read its shape, type and digest: two data sets are the same where these are equal."""
    splits = {name: split for name in SPLITS if len((split := self.split(name)).labels)}
    found = {name: split.fingerprint() for name, split in splits.items()}
    return found if self.extra is None else found | {"extra": self.extra.fingerprint(_SAMPLE)}
