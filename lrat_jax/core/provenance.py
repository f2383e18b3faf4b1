"""The version and the commit of the lrat_jax that is running, and the schema version of the files that it writes."""

import functools
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from lrat_jax.core.errors import ConfigError

# Of config.json and results.json; increased when a name in them changes.
SCHEMA_VERSION = 1
_ROOT = Path(__file__).parent.parent


def version() -> str:
  """The version as installed, or else from the clone's pyproject.toml; "unknown" if neither exists."""
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
  """The output of git in the folder of the package; None if git fails or is not installed."""
  try:
    done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=10, check=True)
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip()


@functools.cache
def commit() -> dict[str, Any]:
  """{"commit", "dirty"}: the commit, and whether tracked files differ from it; both None outside a git checkout.

  Both are also None if the package is in another repository but not tracked by it, as in a virtual environment there.
  """
  if _git("ls-files", "--error-unmatch", "__init__.py") is None:
    return {"commit": None, "dirty": None}
  return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def stamp() -> dict[str, Any]:
  """The first entries of config.json and results.json: the schema version, the version of lrat_jax, and the commit."""
  return {"schema_version": SCHEMA_VERSION, "lrat_jax": version(), **commit()}


def refuse_other_schema(path: Path, content: Mapping[str, Any]) -> None:
  """Raises ConfigError, with a one-line message, if a config.json or results.json has another schema version."""
  found = content.get("schema_version")
  if found != SCHEMA_VERSION:
    which = "an earlier" if not isinstance(found, int) or found < SCHEMA_VERSION else "a later"
    raise ConfigError(f"{path} was written by {which} version of lrat_jax and cannot be read.")
