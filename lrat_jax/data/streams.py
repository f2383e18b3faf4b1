"""Images that are read as they are asked for, in place of an array in memory, and the choice between the two."""

import contextlib
import math
import os
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
from rich.filesize import decimal

from lrat_jax.core import sharding
from lrat_jax.data.npz_idx import DataError

LOADINGS = ("auto", "memory", "stream")
# What "auto" gives of the host's memory to decoded images; a split is copied once while it is cut.
_SHARE = 0.25
# Decoding releases Python's lock, the rest of a record's way does not: more threads than this wait for one another.
_MOST_WORKERS = 16
# A thread takes so many records at a time, or more where it would be handed records more than so many times: each time
# costs as much as a small picture.
_TOGETHER, _MOST_TIMES = 16, 1024
_ALIGNMENT = 64
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

# (seed, step) of a training batch, which random crops are drawn from.
Moment = tuple[int, int]


class Records(Protocol):
  """Images in files, by their numbers from 0."""

  @property
  def shape(self) -> tuple[int, ...]:
    """(n, h, w, c)."""

  def read(self, numbers: np.ndarray, moment: Moment | None = None) -> np.ndarray:
    """uint8 [k, h, w, c]; where images are cropped at random, as at a moment of training, or without one the centre."""


class Stream:
  """uint8 [n, h, w, c] that is read where rows are asked for; it stands for the array of images in a `Split`.

  Args:
    records: what it reads.
    numbers: int [n], which of the records it is, in its order; all by default.
  """

  dtype = np.dtype(np.uint8)
  ndim = 4

  def __init__(self, records: Records, numbers: np.ndarray | None = None):
    self.records = records
    self._numbers = np.arange(records.shape[0]) if numbers is None else numbers

  @property
  def shape(self) -> tuple[int, ...]:
    return (len(self._numbers), *self.records.shape[1:])

  @property
  def size(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64))

  @property
  def nbytes(self) -> int:
    """What it would take in memory."""
    return self.size

  def select(self, rows: np.ndarray) -> "Stream":
    """Some rows, of which nothing is read yet."""
    return Stream(self.records, self._numbers[rows])

  def read(self, rows: np.ndarray | slice, moment: Moment | None = None) -> np.ndarray:
    """uint8 [k, h, w, c], as `Records.read` says."""
    return self.records.read(self._numbers[rows], moment)

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
    if isinstance(rows, int | np.integer):
      return self.read(np.array([rows]))[0]
    return self.read(rows)

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return self[:].astype(dtype or self.dtype, copy=False)


def stream_of(records: Records) -> np.ndarray:
  """All of some records, as what a `Split` takes for an array of images."""
  return cast(np.ndarray, Stream(records))


class MappedRecords(NamedTuple):
  """An array that is mapped from its file: uint8 [n, h, w, c]."""

  images: np.ndarray

  @property
  def shape(self) -> tuple[int, ...]:
    return self.images.shape

  def read(self, numbers: np.ndarray, moment: Moment | None = None) -> np.ndarray:
    return self.images[numbers]


def empty_images(shape: tuple[int, ...]) -> np.ndarray:
  """Uninitialised uint8 at an address that XLA:CPU takes as it is: it copies what is not aligned to 64 bytes."""
  size = math.prod(shape)
  buffer = np.empty(size + _ALIGNMENT, np.uint8)
  start = -buffer.ctypes.data % _ALIGNMENT
  return buffer[start : start + size].reshape(shape)


class JoinedRecords(NamedTuple):
  """Arrays one after the other, each mapped from its file or in memory: uint8 [n, h, w, c] of one shape but for n."""

  arrays: tuple[np.ndarray, ...]

  @property
  def shape(self) -> tuple[int, ...]:
    return (sum(map(len, self.arrays)), *self.arrays[0].shape[1:])

  def read(self, numbers: np.ndarray, moment: Moment | None = None) -> np.ndarray:
    ends = np.cumsum([len(array) for array in self.arrays])
    which, images = np.searchsorted(ends, numbers, side="right"), empty_images((len(numbers), *self.shape[1:]))
    for index, array in enumerate(self.arrays):
      images[which == index] = array[numbers[which == index] - (ends[index] - len(array))]
    return images


class Threads:
  """Threads for all that is read of one data set: while the last images of a batch are read, the next one begins.

  Args:
    workers: how many threads; 0 is one for each core that this process may use, up to 16.
  """

  def __init__(self, workers: int = 0):
    self._count = workers or min(sharding.num_cores(), _MOST_WORKERS)
    self._pool = futures.ThreadPoolExecutor(self._count, "read")

  def for_each(self, count: int, action: Callable[[int], None]) -> None:
    """`action` of every number below `count`; the first error ends it."""
    a_thread = count // self._count
    together = max(1, min(_TOGETHER, a_thread // 4), math.ceil(a_thread / _MOST_TIMES))

    def act(first: int) -> None:
      for number in range(first, min(first + together, count)):
        action(number)

    for _ in self._pool.map(act, range(0, count, together)):
      pass


def host_memory() -> int:
  """Bytes of memory that this host has, or that its container may use."""
  limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  for name in _MEMORY_LIMITS:
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
      limits.append(int(Path(name).read_text()))
  return min(limits)


class Decision(NamedTuple):
  """Whether images are streamed, and why: a line, empty where there was nothing to choose."""

  streams: bool = False
  line: str = ""


class Loading(NamedTuple):
  """How images become arrays: fields of a configuration's `data`.

  Attributes:
    kind: one of `LOADINGS`; "auto" keeps in memory what takes a quarter of the host's at the most.
    image_size: the side of squares that pictures are brought to; 0 leaves them as they are.
    random_resized_crop: the smallest share of a picture that a crop in training may be; 0 is off.
    workers: threads that read and decode, as of `Threads`.
    on_devices: whether training images are to wait on the devices, which a stream cannot.
  """

  kind: str = "memory"
  image_size: int = 0
  random_resized_crop: float = 0.0
  workers: int = 0
  on_devices: bool = False

  def decide(self, nbytes: int, obstacle: str = "") -> Decision:
    """Whether images of so many bytes are streamed.

    Args:
      obstacle: why they cannot be, for a sentence that begins with "they".

    Raises:
      DataError: they have to be, and cannot.
    """
    if self.kind == "stream" and obstacle:
      raise DataError(f"data.loading='stream': its images cannot be streamed; they {obstacle}.")
    if self.kind != "auto":
      return Decision(self.kind == "stream")
    size, memory = f"{decimal(nbytes)} of images", decimal(host_memory())
    if self.random_resized_crop:
      return Decision(True, f"{size} are streamed (data.loading=auto), as data.random_resized_crop needs them.")
    if self.on_devices:
      return Decision(False, f"{size} are held in memory (data.loading=auto), for data.placement=device.")
    if nbytes <= _SHARE * host_memory():
      return Decision(False, f"{size} are held in memory (data.loading=auto: up to a quarter of the host's {memory}).")
    if obstacle:
      return Decision(False, f"{size} are held in memory of {memory} (data.loading=auto), since they {obstacle}.")
    return Decision(True, f"{size} are streamed (data.loading=auto: more than a quarter of the host's {memory}).")


# As data sets are loaded unless asked otherwise.
IN_MEMORY = Loading()
