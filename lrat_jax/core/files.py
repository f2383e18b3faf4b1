"""Files that are whole or not there: written beside their place and moved into it; read whole or called damaged."""

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
  """A binary file to write into; it takes `path`'s place when the block ends, and never if the block fails."""
  partial = path.with_name(path.name + ".tmp")
  with partial.open("wb") as file:
    yield file
  partial.replace(path)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = True) -> None:
  """Puts an npz of the arrays in its place, whole."""
  save: Callable[..., None] = np.savez_compressed if compress else np.savez
  with replacing(path) as file:
    save(file, **arrays)


def _damaged(path: Path, error: Exception) -> CorruptFileError:
  return CorruptFileError(f"{path} is damaged ({textwrap.shorten(str(error), 200) or type(error).__name__}).")


def read_arrays(path: Path, names: Iterable[str] = ()) -> dict[str, np.ndarray]:
  """All arrays of an npz; Python objects are never loaded.

  Raises:
    CorruptFileError: it is not there, not whole, or lacks one of the names.
  """
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
      arrays = dict(archive)
  except Exception as error:  # damaged bytes make zipfile and NumPy's reader of headers raise almost anything
    raise _damaged(path, error) from None
  for name in names:
    if not isinstance(arrays.get(name), np.ndarray):
      raise CorruptFileError(f"{path} is damaged (it lacks the array {name!r}).")
  return arrays


def read_json(path: Path) -> dict[str, Any]:
  """The object that a JSON file holds. Raises CorruptFileError where it is missing or is no JSON object."""
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError) as error:
    raise _damaged(path, error) from None
  if not isinstance(content, dict):
    raise CorruptFileError(f"{path} is damaged (it holds {type(content).__name__} where an object belongs).")
  return content
