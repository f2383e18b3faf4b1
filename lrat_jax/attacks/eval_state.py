"""Saves finished pieces of a long evaluation in a directory, so that it can stop at any moment and resume there."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils

from lrat_jax.core import files
from lrat_jax.core.errors import CorruptFileError


@runtime_checkable
class Store(Protocol):
  """The interface that `autoattack` needs to save finished work; a piece is one batch of one round of a stage."""

  def open(self, fingerprint: Mapping[str, str]) -> None:
    """Called first, with what the work depends on. Raises ValueError if the saved work depends on something else."""

  def load(self, piece: str) -> dict[str, np.ndarray] | None:
    """The arrays of a finished piece, or None."""

  def save(self, piece: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Saves a finished piece, completely or not at all."""


class NullStore:
  """A store that saves nothing."""

  def open(self, fingerprint: Mapping[str, str]) -> None:
    """Accepts any fingerprint, because nothing is saved."""

  def load(self, piece: str) -> None:
    """Returns None for every piece."""

  def save(self, piece: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Saves nothing."""


class FileStore:
  """A store in its own directory: one npz file per piece, and the fingerprint as fingerprint.json."""

  def __init__(self, directory: Path | str):
    self._directory = Path(directory)

  def open(self, fingerprint: Mapping[str, str]) -> None:
    """Opens the directory, which must be new or of the same work. Raises ValueError naming what differs."""
    self._directory.mkdir(parents=True, exist_ok=True)
    path = self._directory / "fingerprint.json"
    if not path.exists():
      with files.replacing(path) as file:
        file.write(json.dumps(dict(fingerprint), indent=2).encode())
      return
    try:
      kept = files.read_json(path)
    except CorruptFileError:
      raise ValueError(f"{path} is damaged; remove {self._directory} and run the evaluation again.") from None
    different = sorted(name for name in {*kept, *fingerprint} if kept.get(name) != fingerprint.get(name))
    if different:
      raise ValueError(
        f"{self._directory} contains an evaluation that differs in {', '.join(different)}; use another directory or "
        "remove this one."
      )

  def load(self, piece: str) -> dict[str, np.ndarray] | None:
    """The arrays of a finished piece; None if there is no complete file."""
    try:
      return files.read_arrays(self._directory / f"{piece}.npz")
    except CorruptFileError:  # the piece is computed again
      return None

  def save(self, piece: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the piece to a temporary file, then renames it."""
    files.write_arrays(self._directory / f"{piece}.npz", arrays, compress=False)


class MultiHostStore:
  """A store that several processes share: the first writes, and a piece is loaded if all of them can load it."""

  def __init__(self, store: Store):
    self._store, self._writes = store, jax.process_index() == 0

  def open(self, fingerprint: Mapping[str, str]) -> None:
    """Opens the store on the first process. Raises ValueError on all processes if the first one does."""
    refusal = None
    if self._writes:
      try:
        self._store.open(fingerprint)
      except ValueError as error:
        refusal = error
    if not _everywhere(refusal is None):
      raise refusal or ValueError("the first process rejected the store; its own error says why.")

  def load(self, piece: str) -> dict[str, np.ndarray] | None:
    """The arrays of a piece that every process can load, else None."""
    found = self._store.load(piece)
    return found if _everywhere(found is not None) else None

  def save(self, piece: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Saves the piece, on the first process only."""
    if self._writes:
      self._store.save(piece, arrays)


class CallbackStore:
  """A store that calls a function after each piece that it has saved."""

  def __init__(self, store: Store, on_kept: Callable[[], None]):
    self._store, self._on_kept = store, on_kept

  def open(self, fingerprint: Mapping[str, str]) -> None:
    """Opens the underlying store."""
    self._store.open(fingerprint)

  def load(self, piece: str) -> dict[str, np.ndarray] | None:
    """Loads the piece from the underlying store."""
    return self._store.load(piece)

  def save(self, piece: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Saves the piece, then calls the function."""
    self._store.save(piece, arrays)
    self._on_kept()


def _everywhere(here: bool) -> bool:
  """Whether `here` is true on every process."""
  return bool(np.all(multihost_utils.process_allgather(np.asarray(here))))
