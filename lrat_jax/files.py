"""Files that are whole or not there: written beside their place, then moved into it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """A binary file to write into; it takes `path`'s place when the block ends, and never if the block fails."""
  partial = path.with_name(path.name + ".tmp")
  with partial.open("wb") as file:
    yield file
  partial.replace(path)
