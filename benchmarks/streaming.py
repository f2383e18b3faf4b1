"""The cost of streaming: the data feed's rate compared with bare decoding, and the memory of the reading process.

  python -m benchmarks.streaming
  python -m benchmarks.streaming --counts=2000,20000 --output=streaming.json

Writes JPEGs of 224x224 with random shapes to temporary folders. Each folder is then read in its own process,
alternately by Pillow alone, in as many threads, and in training batches that are put on the devices. Rates are those of
the fastest round in wall-clock time; if others use the machine, the lowest processor time is more reliable. Memory is
the resident memory after 200 batches of 32 images, and the peak until then.
"""

import argparse
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from concurrent import futures
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks import common
from lrat_jax import data
from lrat_jax.core import malloc, sharding
from lrat_jax.data.streams import Loading

_SIDE = 224
_CLASSES = 10
_TEST = 16
# The number of images in a round of each side; the sides take turns.
_PART = 1024
# Before the feed is timed, it has some seconds to read ahead, and the batches that it may have read ahead are taken.
_AHEAD, _PAUSE = 6, 2.0
# Memory is measured after this number of batches of this size. Batches are small because the number of batches in
# flight depends on the threads, and should not matter more than the data set's size.
_SETTLED, _SMALL_BATCH = 200, 32


def _draw(path: Path, seed: int) -> None:
  """A JPEG that takes about as long to decode as a photograph: a noisy gradient with shapes on it."""
  generator = np.random.default_rng(seed)
  noise = generator.normal(0, 12, (_SIDE, _SIDE, 3)) + np.linspace(40, 200, _SIDE)[:, None, None]
  picture = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
  canvas = ImageDraw.Draw(picture)
  for _ in range(12):
    corners = np.sort(generator.integers(0, _SIDE, (2, 2)), axis=0).ravel().tolist()
    canvas.ellipse(corners, fill=tuple(generator.integers(0, 256, 3).tolist()))
  picture.save(path, quality=90)


def make_folder(folder: Path, count: int) -> str:
  """Writes a data set of `count` training JPEGs, a file each; those after the first thousand are copies."""
  for split, number in (("train", count), ("test", _TEST)):
    for label in range(_CLASSES):
      (folder / split / f"class_{label}").mkdir(parents=True)
    for index in range(number):
      path = folder / split / f"class_{index % _CLASSES}" / f"{index:06d}.jpg"
      if index < 1000:
        _draw(path, index)
      else:
        shutil.copyfile(folder / split / f"class_{index % _CLASSES}" / f"{index % 1000:06d}.jpg", path)
  return f"images:{folder}"


def _resident() -> int:
  """The resident memory of this process in bytes."""
  return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Peak(threading.Thread):
  """Measures the peak memory while it runs."""

  def __init__(self):
    super().__init__(daemon=True)
    self.bytes, self._ended = 0, threading.Event()

  def run(self) -> None:
    while not self._ended.wait(0.01):
      self.bytes = max(self.bytes, _resident())

  def end(self) -> int:
    self._ended.set()
    self.join()
    return self.bytes


class _Clock:
  """Seconds since its creation: (wall-clock time, processor time)."""

  def __init__(self):
    self._start = time.perf_counter(), time.process_time()

  def read(self) -> tuple[float, float]:
    return time.perf_counter() - self._start[0], time.process_time() - self._start[1]


def _bare(paths: list[Path], pool: futures.Executor) -> tuple[float, float]:
  """Time to decode pictures, each to an array that is discarded."""

  def decode(path: Path) -> None:
    with Image.open(path) as picture:
      np.asarray(picture.convert("RGB"))

  clock = _Clock()
  for _ in pool.map(decode, paths):
    pass
  return clock.read()


def measure(source: str, batch_size: int, workers: int, images: int) -> dict:
  """Measures one folder, in this process."""
  malloc.disable_malloc_trim()
  mesh = sharding.make_mesh()
  split = data.load(source, validation_size=1, loading=Loading("stream", workers=workers)).train
  peak = _Peak()
  peak.start()
  place = data.make_device_put(split, mesh, "host")
  batches = data.train_batches(split, _SMALL_BATCH, 0, place)
  for _ in range(_SETTLED):
    next(batches)["images"].block_until_ready()
  resident, largest = _resident(), peak.end()
  batches.close()
  batches = data.train_batches(split, batch_size, 0, place)
  paths = sorted(Path(source.removeprefix("images:"), "train").glob("*/*.jpg"))
  steps, generator, bare, feed = _PART // batch_size, np.random.default_rng(0), [], []
  with futures.ThreadPoolExecutor(2 * workers) as pool:  # two batches are read at once
    for _ in range(max(images // _PART, 1)):
      time.sleep(_PAUSE)
      chosen = [paths[row] for row in generator.integers(0, len(paths), steps * batch_size)]
      bare.append(_bare(chosen, pool))
      for _ in range(_AHEAD):
        next(batches)
      clock = _Clock()
      for _ in range(steps):
        next(batches)["images"].block_until_ready()
      feed.append(clock.read())
  count = steps * batch_size
  (bare_seconds, bare_busy), (feed_seconds, feed_busy) = (np.min(side, axis=0).tolist() for side in (bare, feed))
  return {
    "images": len(paths),
    "decoded GB": split.nbytes / 1e9,
    "threads": workers,
    "bare images/s": count / bare_seconds,
    "feed images/s": count / feed_seconds,
    "feed / bare": bare_seconds / feed_seconds,
    "of processor": bare_busy / feed_busy,
    "RSS MB": resident / 1e6,
    "peak MB": largest / 1e6,
  }


def main() -> None:
  options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  options.add_argument("--counts", default="2000,20000", help="training images of each folder")
  options.add_argument("--batch-size", type=int, default=128)
  options.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
  options.add_argument("--images", type=int, default=5 * _PART, help="images that each side reads")
  options.add_argument("--output", type=Path, help="a JSON file for the table")
  arguments = options.parse_args()
  rows = []
  for count in map(int, arguments.counts.split(",")):
    with (
      tempfile.TemporaryDirectory() as folder,
      futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone,
    ):
      source = make_folder(Path(folder), count)
      rows.append(alone.submit(measure, source, arguments.batch_size, arguments.workers, arguments.images).result())
  common.report(f"Streaming JPEGs of {_SIDE}x{_SIDE}", rows, arguments.output)


if __name__ == "__main__":
  main()
