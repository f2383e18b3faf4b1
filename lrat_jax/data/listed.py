"""A list of test images to evaluate instead of all: RobustBench's 5,000 images of ImageNet, or any others."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrat_jax.data import image_folder, tfds
from lrat_jax.data.npz_idx import DataError, reason
from lrat_jax.data.splits import Split

# Marks the last part of a name if several images share it.
_SEVERAL = -1
_SHOWN = 80


def _places(names: Sequence[str]) -> dict[str, int]:
  """The row of each name, and of the last part of each name, _SEVERAL if it is shared by several images."""
  found: dict[str, int] = {}
  for row, name in enumerate(names):
    last = name.rpartition("/")[2]
    found[last] = _SEVERAL if last in found else row
  return found | {name: row for row, name in enumerate(names)}


def _names(source: str, data_dir: str, test: Split) -> list[str] | None:
  """The file names of a source's test images; None if they have none."""
  kind, _, argument = source.partition(":")
  if kind == "images":
    return image_folder.test_names(Path(os.path.expanduser(argument)))  # noqa: PTH111 (no such user: left as it is)
  return tfds.file_names(argument, data_dir, test.labels) if kind == "tfds" else None


def rows(path: str, source: str, data_dir: str, test: Split) -> np.ndarray:
  """The rows int [k] of the images of a test split that are in a list, in the list's order.

  A line is an image's index, as in results, or its file name: relative to the folder of the test images, or only the
  last part, if no other image has the same. If a line matches no name as a whole, only its last part is used, so that
  additional folders are ignored, such as the class before the names that TFDS has kept. Empty lines are skipped.

  Args:
    path: of the list.
    source, data_dir: where the split comes from, as in `sources.load`.

  Raises:
    DataError: the list cannot be read or is empty, a line matches no test image, several, or one that is already
      listed, or there are file names but the source has none.
  """
  where = f"eval.image_list={path!r}"
  try:
    lines = Path(os.path.expanduser(path)).read_text(encoding="utf-8").splitlines()  # noqa: PTH111 (as above)
  except (OSError, UnicodeDecodeError, ValueError) as error:
    raise DataError(f"{where} cannot be read: {reason(error)}") from None
  wanted = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
  if not wanted:
    raise DataError(f"{where} lists no images; it must have one file name or index per line.")
  found = {str(index): row for row, index in enumerate(test.indices.tolist())}
  if any(not line.isdecimal() for _, line in wanted):
    names = _names(source, data_dir, test)
    if names is None:
      raise DataError(f"{where}: data.source={source!r} has no file names; list the images' indices instead.")
    found |= _places(names)
  seen: dict[int, int] = {}
  for number, line in wanted:
    row = found.get(line, found.get(line.rpartition("/")[2]))
    if row is None or row == _SEVERAL:
      which = "no image" if row is None else "several images"
      raise DataError(f"{where}, line {number}: the test split has {which} {line[:_SHOWN]!r}.")
    if row in seen:
      raise DataError(f"{where}, line {number}: {line[:_SHOWN]!r} is the same image as line {seen[row]}.")
    seen[row] = number
  return np.array(list(seen))


def listed_for(path: str, config: Mapping[str, Any], test: Split) -> np.ndarray | None:
  """`rows` with the fields of a configuration's `data`; None if there is no list."""
  return rows(path, config["source"], config["data_dir"], test) if path else None
