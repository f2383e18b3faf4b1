"""Single fields of a configuration: read by their path, and refused with the path, the value and the choices."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from lrat_jax.core import user_code
from lrat_jax.core.errors import ConfigError

# Far beyond use, and far from where float32, int32 or memory end.
LARGEST = 1e6
MOST = 10**9


def value_at(config: ConfigDict, path: str) -> Any:
  """The value or group at a path, as "optimizer.momentum"."""
  for key in path.split("."):
    config = config[key]
  return config


def check_choice(config: ConfigDict, path: str, choices: Collection[str]) -> None:
  """Raises ConfigError where a field's value is none of the choices."""
  if (value := value_at(config, path)) not in choices:
    raise ConfigError(f"config.{path}={value!r} is unknown; choose from {sorted(choices)}.")


def check_range(config: ConfigDict, path: str, low: float, high: float = LARGEST, *, open_low: bool = False) -> None:
  """Raises ConfigError where a field's number is outside [low, high], or (low, high]; NaN is outside."""
  value = value_at(config, path)
  if not (low < value if open_low else low <= value) or not value <= high:
    raise ConfigError(f"config.{path}={value!r} is outside {'(' if open_low else '['}{low:g}, {high:g}].")


@contextlib.contextmanager
def errors_of(group: str, named: str = "name") -> Iterator[None]:
  """Names the field of an error inside: of user code `named`, whose value it begins with; else its own in the group."""
  try:
    yield
  except ConfigError:
    raise
  except user_code.UserCodeError as error:
    raise ConfigError(f"config.{group}.{named}={error}") from error
  except ValueError as error:
    raise ConfigError(f"config.{group}.{error}") from error
