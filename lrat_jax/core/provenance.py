"""Which version of lrat_jax, and which commit of it, computes; and the version of the files that it writes."""

import functools
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from lrat_jax.core.errors import ConfigError

# Of config.json and results.json; it grows when a name in them changes.
SCHEMA_VERSION = 1
_ROOT = Path(__file__).parent.parent


def version() -> str:
  """The version as installed; "unknown" in a clone that was never installed and has lost its pyproject.toml."""
  try:
    return metadata.version("lrat_jax")
  except metadata.PackageNotFoundError:
    return _version_of_clone()


def _version_of_clone() -> str:
  import tomllib

  try:
    return tomllib.loads((_ROOT.parent / "pyproject.toml").read_text())["project"]["version"]
  except (OSError, KeyError, ValueError):
    return "unknown"


def _git(*arguments: str) -> str | None:
  """What git prints on the folder of the package; None where it fails or is not installed."""
  try:
    done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=10, check=True)
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip()


@functools.cache
def commit() -> dict[str, Any]:
  """{"commit", "dirty"}: the commit, and whether tracked files differ from it; both None outside a git checkout.

  A package that merely lies in somebody's repository, as in a virtual environment there, is not that repository's code.
  """
  if _git("ls-files", "--error-unmatch", "__init__.py") is None:
    return {"commit": None, "dirty": None}
  return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def stamp() -> dict[str, Any]:
  """What config.json and results.json begin with: the schema's version, lrat_jax's, and the commit."""
  return {"schema_version": SCHEMA_VERSION, "lrat_jax": version(), **commit()}


def refuse_other_schema(path: Path, content: Mapping[str, Any]) -> None:
  """Raises ConfigError, in one line, for a config.json or results.json of another schema version."""
  found = content.get("schema_version")
  if found != SCHEMA_VERSION:
    which = "an earlier" if not isinstance(found, int) or found < SCHEMA_VERSION else "a later"
    raise ConfigError(f"{path} was written by {which} version of lrat_jax and cannot be read.")
