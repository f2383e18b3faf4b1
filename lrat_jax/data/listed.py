"""Test images that a list names, to be evaluated in place of all: RobustBench's 5,000 of ImageNet's, or any others."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrat_jax.data import image_folder, tfds
from lrat_jax.data.npz_idx import DataError, reason
from lrat_jax.data.splits import Split

# What stands for the last part of a name that several images have.
_SEVERAL = -1
_SHOWN = 80


def _places(names: Sequence[str]) -> dict[str, int]:
  """The row of each name, and of its last part where one image alone has that."""
  found: dict[str, int] = {}
  for row, name in enumerate(names):
    last = name.rpartition("/")[2]
    found[last] = _SEVERAL if last in found else row
  return found | {name: row for row, name in enumerate(names)}


def _names(source: str, data_dir: str, test: Split) -> list[str] | None:
  """The file names of a source's test images; None where it has none."""
  kind, _, argument = source.partition(":")
  if kind == "images":
    return image_folder.test_names(Path(os.path.expanduser(argument)))  # noqa: PTH111 (no such user: left as it is)
  return tfds.file_names(argument, data_dir, test.labels) if kind == "tfds" else None


def rows(path: str, source: str, data_dir: str, test: Split) -> np.ndarray:
  """The rows int [k] of a test split that a list names, in the list's order.

  A line is an image's index, as results name it, or its file's name: as seen from the folder of the test images, or its
  last part, where one image alone has that. Folders that a line alone has count for nothing, as the class before the
  names that TFDS has kept. Empty lines are passed over.

  Args:
    path: of the list.
    source, data_dir: where the split comes from, as `sources.load` takes them.

  Raises:
    DataError: a list that cannot be read or names nothing, or a line that names no test image, or one once more; names
      where the source has none.
  """
  where = f"eval.image_list={path!r}"
  try:
    lines = Path(os.path.expanduser(path)).read_text(encoding="utf-8").splitlines()  # noqa: PTH111 (as above)
  except (OSError, UnicodeDecodeError, ValueError) as error:
    raise DataError(f"{where} cannot be read: {reason(error)}") from None
  wanted = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
  if not wanted:
    raise DataError(f"{where} names no image; it has a file name or an index a line.")
  found = {str(index): row for row, index in enumerate(test.indices.tolist())}
  if any(not line.isdecimal() for _, line in wanted):
    names = _names(source, data_dir, test)
    if names is None:
      raise DataError(f"{where}: data.source={source!r} has no file names; write the images' indices.")
    found |= _places(names)
  seen: dict[int, int] = {}
  for number, line in wanted:
    row = found.get(line, found.get(line.rpartition("/")[2]))
    if row is None or row == _SEVERAL:
      which = "no image" if row is None else "several images"
      raise DataError(f"{where}, line {number}: the test split has {which} {line[:_SHOWN]!r}.")
    if row in seen:
      raise DataError(f"{where}, line {number}: {line[:_SHOWN]!r} is the image of line {seen[row]}.")
    seen[row] = number
  return np.array(list(seen))


def listed_for(path: str, config: Mapping[str, Any], test: Split) -> np.ndarray | None:
  """`rows` with the fields of a configuration's `data`; None where there is no list."""
  return rows(path, config["source"], config["data_dir"], test) if path else None
