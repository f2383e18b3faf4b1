"""Finished pieces of a long evaluation in a directory, so that it can stop at any moment and goes on there."""

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
  """What `autoattack` asks of a place for finished work; a piece is one batch of one round of a stage."""

  def open(self, fingerprint: Mapping[str, str]) -> None:
    """Told what the work depends on before anything else. Raises ValueError if what is kept depends on other things."""

  def load(self, piece: str) -> dict[str, np.ndarray] | None:
    """The arrays of a finished piece, or None."""

  def save(self, piece: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps a finished piece, whole or not at all."""


class NullStore:
  """A store that keeps nothing."""

  def open(self, fingerprint: Mapping[str, str]) -> None:
    """Nothing is kept that could differ."""

  def load(self, piece: str) -> None:
    """No piece is there."""

  def save(self, piece: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps nothing."""


class FileStore:
  """A store in a directory of its own: one npz a piece, and the fingerprint as fingerprint.json."""

  def __init__(self, directory: Path | str):
    self._directory = Path(directory)

  def open(self, fingerprint: Mapping[str, str]) -> None:
    """Takes the directory, new or of the same work. Raises ValueError naming what differs."""
    self._directory.mkdir(parents=True, exist_ok=True)
    path = self._directory / "fingerprint.json"
    if not path.exists():
      with files.replacing(path) as file:
        file.write(json.dumps(dict(fingerprint), indent=2).encode())
      return
    try:
      kept = files.read_json(path)
    except CorruptFileError:
      raise ValueError(f"{path} is damaged; remove {self._directory}, and what it holds is done again.") from None
    different = sorted(name for name in {*kept, *fingerprint} if kept.get(name) != fingerprint.get(name))
    if different:
      raise ValueError(
        f"{self._directory} holds an evaluation with other {', '.join(different)}; give another directory or remove it."
      )

  def load(self, piece: str) -> dict[str, np.ndarray] | None:
    """The arrays of a finished piece; None where there is no whole file."""
    try:
      return files.read_arrays(self._directory / f"{piece}.npz")
    except CorruptFileError:  # the piece is done again
      return None

  def save(self, piece: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the piece beside its place, then moves it there."""
    files.write_arrays(self._directory / f"{piece}.npz", arrays, compress=False)


class MultiHostStore:
  """A store that several processes share: the first writes, and a piece is there when all of them see it."""

  def __init__(self, store: Store):
    self._store, self._writes = store, jax.process_index() == 0

  def open(self, fingerprint: Mapping[str, str]) -> None:
    """Takes the store on the first process; ValueError on all if it does not fit there."""
    refusal = None
    if self._writes:
      try:
        self._store.open(fingerprint)
      except ValueError as error:
        refusal = error
    if not _everywhere(refusal is None):
      raise refusal or ValueError("the first process refused the store.")

  def load(self, piece: str) -> dict[str, np.ndarray] | None:
    """The arrays of a piece that every process can load, else None."""
    found = self._store.load(piece)
    return found if _everywhere(found is not None) else None

  def save(self, piece: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps the piece, once."""
    if self._writes:
      self._store.save(piece, arrays)


class CallbackStore:
  """A store that calls a function after each piece that it has kept."""

  def __init__(self, store: Store, on_kept: Callable[[], None]):
    self._store, self._on_kept = store, on_kept

  def open(self, fingerprint: Mapping[str, str]) -> None:
    """As the store does."""
    self._store.open(fingerprint)

  def load(self, piece: str) -> dict[str, np.ndarray] | None:
    """As the store does."""
    return self._store.load(piece)

  def save(self, piece: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps the piece, then calls."""
    self._store.save(piece, arrays)
    self._on_kept()


def _everywhere(here: bool) -> bool:
  """Whether it holds on every process."""
  return bool(np.all(multihost_utils.process_allgather(np.asarray(here))))
