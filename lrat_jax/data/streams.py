"""Images that are read on demand instead of held in memory as an array, and the choice between the two."""

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
# The largest share of the host's memory that "auto" uses for decoded images; dividing a split copies it once.
_SHARE = 0.25
# Decoding releases Python's lock, the rest of reading a record does not: more threads than this would block each other.
_MOST_WORKERS = 16
# A thread takes up to _TOGETHER records at a time, or more if it would otherwise have to take records more than
# _MOST_TIMES times: each time costs as much as decoding a small picture.
_TOGETHER, _MOST_TIMES = 16, 1024
_ALIGNMENT = 64
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

# (seed, step) of a training batch, from which random crops are drawn.
Moment = tuple[int, int]


class Records(Protocol):
  """Images in files, numbered from 0."""

  @property
  def shape(self) -> tuple[int, ...]:
    """(n, h, w, c)."""

  def read(self, numbers: np.ndarray, moment: Moment | None = None) -> np.ndarray:
    """uint8 [k, h, w, c]; with random crops, those of a training `moment`, or the centres if it is None."""


class Stream:
  """Images uint8 [n, h, w, c] that are read on demand, used in place of the array of images in a `Split`.

  Args:
    records: the records from which the images are read.
    numbers: int [n], the numbers of the records in this stream, in its order; all by default.
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
    """The size in bytes that the images would take in memory."""
    return self.size

  def select(self, rows: np.ndarray) -> "Stream":
    """A stream of some rows, without reading them."""
    return Stream(self.records, self._numbers[rows])

  def read(self, rows: np.ndarray | slice, moment: Moment | None = None) -> np.ndarray:
    """uint8 [k, h, w, c], as in `Records.read`."""
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
  """A stream of all records, with the type of a `Split`'s array of images."""
  return cast(np.ndarray, Stream(records))


class MappedRecords(NamedTuple):
  """An array uint8 [n, h, w, c] that is memory-mapped from its file."""

  images: np.ndarray

  @property
  def shape(self) -> tuple[int, ...]:
    return self.images.shape

  def read(self, numbers: np.ndarray, moment: Moment | None = None) -> np.ndarray:
    return self.images[numbers]


def empty_images(shape: tuple[int, ...]) -> np.ndarray:
  """An uninitialised uint8 array, aligned to 64 bytes because XLA:CPU copies arrays that are not."""
  size = math.prod(shape)
  buffer = np.empty(size + _ALIGNMENT, np.uint8)
  start = -buffer.ctypes.data % _ALIGNMENT
  return buffer[start : start + size].reshape(shape)


class JoinedRecords(NamedTuple):
  """Several arrays uint8 [n, h, w, c] in sequence, each memory-mapped or in memory; only n may differ."""

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
  """A pool of threads for reading a data set: while the last images of a batch are read, the next batch is started.

  Args:
    workers: the number of threads; 0 for one per core that this process may use, up to 16.
  """

  def __init__(self, workers: int = 0):
    self._count = workers or min(sharding.num_cores(), _MOST_WORKERS)
    self._pool = futures.ThreadPoolExecutor(self._count, "read")

  def for_each(self, count: int, action: Callable[[int], None]) -> None:
    """Calls `action` for every number below `count`; stops at the first error and raises it."""
    a_thread = count // self._count
    together = max(1, min(_TOGETHER, a_thread // 4), math.ceil(a_thread / _MOST_TIMES))

    def act(first: int) -> None:
      for number in range(first, min(first + together, count)):
        action(number)

    for _ in self._pool.map(act, range(0, count, together)):
      pass


def host_memory() -> int:
  """The memory in bytes that this host has, or that its container may use."""
  limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  for name in _MEMORY_LIMITS:
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
      limits.append(int(Path(name).read_text()))
  return min(limits)


class Decision(NamedTuple):
  """Whether images are streamed, and the reason in one line, empty if there was no choice."""

  streams: bool = False
  line: str = ""


class Loading(NamedTuple):
  """How images are loaded: fields of a configuration's `data`.

  Attributes:
    kind: one of `LOADINGS`; "auto" keeps images in memory if they take at most a quarter of the host's memory.
    image_size: the side of the square to which pictures are resized; 0 leaves them unchanged.
    random_resized_crop: the smallest share of a picture that a crop in training may have; 0 is off.
    workers: the number of threads that read and decode, as in `Threads`.
    on_devices: whether training images are to be kept on the devices, which is not possible for a stream.
  """

  kind: str = "memory"
  image_size: int = 0
  random_resized_crop: float = 0.0
  workers: int = 0
  on_devices: bool = False

  def decide(self, nbytes: int, obstacle: str = "") -> Decision:
    """Decides whether images of `nbytes` bytes are streamed.

    Args:
      obstacle: why they cannot be streamed, for a sentence that begins with "they"; empty if they can.

    Raises:
      DataError: `kind` is "stream", but they cannot be streamed.
    """
    if self.kind == "stream" and obstacle:
      raise DataError(f"data.loading='stream': its images cannot be streamed; they {obstacle}.")
    if self.kind != "auto":
      return Decision(self.kind == "stream")
    size, memory = f"{decimal(nbytes)} of images", decimal(host_memory())
    if self.random_resized_crop:
      return Decision(True, f"{size} are streamed (data.loading=auto), because data.random_resized_crop requires it.")
    if self.on_devices:
      return Decision(False, f"{size} are held in memory (data.loading=auto), because of data.placement=device.")
    if nbytes <= _SHARE * host_memory():
      return Decision(False, f"{size} are held in memory (data.loading=auto: up to a quarter of the host's {memory}).")
    if obstacle:
      return Decision(
        False, f"{size} are held in the host's memory of {memory} (data.loading=auto), since they {obstacle}."
      )
    return Decision(True, f"{size} are streamed (data.loading=auto: more than a quarter of the host's {memory}).")


# How data sets are loaded by default.
IN_MEMORY = Loading()
