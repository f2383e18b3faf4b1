"""Single fields of a configuration: reading by path, and checks whose errors name the path, value and choices."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from lrat_jax.core import user_code
from lrat_jax.core.errors import ConfigError

# Far above practical values, and far below the limits of float32, int32 or memory.
LARGEST = 1e6
MOST = 10**9


def value_at(config: ConfigDict, path: str) -> Any:
  """The value or group at a path such as "optimizer.momentum"."""
  for key in path.split("."):
    config = config[key]
  return config


def check_choice(config: ConfigDict, path: str, choices: Collection[str]) -> None:
  """Raises ConfigError if a field's value is none of the choices."""
  if (value := value_at(config, path)) not in choices:
    raise ConfigError(f"config.{path}={value!r} is unknown; choose from {sorted(choices)}.")


def check_range(config: ConfigDict, path: str, low: float, high: float = LARGEST, *, open_low: bool = False) -> None:
  """Raises ConfigError if a field's number is outside [low, high], or (low, high]; NaN is outside."""
  value = value_at(config, path)
  if not (low < value if open_low else low <= value) or not value <= high:
    raise ConfigError(f"config.{path}={value!r} is outside {'(' if open_low else '['}{low:g}, {high:g}].")


@contextlib.contextmanager
def errors_of(group: str, named: str = "name") -> Iterator[None]:
  """Raises errors inside as ConfigErrors that name the field.

  A UserCodeError's message begins with the value of the field `named` of the group. Another ValueError's message begins
  with the name of its own field in the group.
  """
  try:
    yield
  except ConfigError:
    raise
  except user_code.UserCodeError as error:
    raise ConfigError(f"config.{group}.{named}={error}") from error
  except ValueError as error:
    raise ConfigError(f"config.{group}.{error}") from error
