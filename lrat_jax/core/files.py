"""Atomic writes of files (under another name, then renamed), and reads that raise CorruptFileError if damaged."""

import contextlib
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lrat_jax.core.errors import CorruptFileError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """Opens a binary file for writing; it replaces `path` when the block ends, but not if the block fails."""
  partial = path.with_name(path.name + ".tmp")
  with partial.open("wb") as file:
    yield file
  partial.replace(path)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = True) -> None:
  """Writes the arrays to an npz file, with `replacing`."""
  save: Callable[..., None] = np.savez_compressed if compress else np.savez
  with replacing(path) as file:
    save(file, **arrays)


def _damaged(path: Path, error: Exception) -> CorruptFileError:
  return CorruptFileError(f"{path} is damaged ({textwrap.shorten(str(error), 200) or type(error).__name__}).")


def read_arrays(path: Path, names: Iterable[str] = ()) -> dict[str, np.ndarray]:
  """All arrays of an npz file; Python objects are never loaded.

  Raises:
    CorruptFileError: the file is missing or incomplete, or lacks one of the names.
  """
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
      arrays = dict(archive)
  except Exception as error:  # for damaged bytes, zipfile and NumPy's header reader raise almost anything
    raise _damaged(path, error) from None
  for name in names:
    if not isinstance(arrays.get(name), np.ndarray):
      raise CorruptFileError(f"{path} is damaged (it lacks the array {name!r}).")
  return arrays


def read_json(path: Path) -> dict[str, Any]:
  """The object in a JSON file. Raises CorruptFileError if the file is missing or contains no JSON object."""
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError) as error:
    raise _damaged(path, error) from None
  if not isinstance(content, dict):
    raise CorruptFileError(f"{path} is damaged (it contains {type(content).__name__}, not a JSON object).")
  return content
