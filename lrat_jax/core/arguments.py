"""Checks of arguments. An error is one line with the argument's name, its value and the allowed values."""

import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Images may exceed [0, 1] by this much, because of rounding such as after a resize; they are clipped.
ROUNDING = 1e-5
# The largest number of steps, restarts, queries, and lengths: far above practical values, far below overflow.
_MOST = 10**6


def shown(value: Any) -> str:
  """The repr of a value, on one line."""
  return " ".join(repr(value).split())


def check_choice(value: Any, name: str, choices: Sequence[str]) -> None:
  """Raises ValueError, with the choices, unless the value is one of them."""
  if not isinstance(value, str) or value not in choices:
    raise ValueError(f"{name}={shown(value)} is unknown; choose from {list(choices)}.")


def check_count(value: Any, name: str, least: int) -> int:
  """An integer from `least` to a million, more than any run could finish. Raises ValueError for anything else."""
  try:
    count = operator.index(value)
  except TypeError:  # also for traced values
    count = None
  if count is None or isinstance(value, bool) or not least <= count <= _MOST:
    raise ValueError(f"{name}={shown(value)} must be an integer from {least} to {_MOST:,}.")
  return count


def check_group(value: Any, name: str) -> Mapping[str, Any]:
  """The value as a dict, if it is a mapping with at least one entry. Raises ValueError for anything else."""
  if not hasattr(value, "items") or not len(value):
    raise ValueError(f"{name}={shown(value)} must have a value for each norm, such as {{'linf': 0.03, 'l2': 0.5}}.")
  return dict(value.items())


def check_flag(value: Any, name: str) -> bool:
  """True or False. Raises ValueError for anything else."""
  if not isinstance(value, bool | np.bool_):
    raise ValueError(f"{name}={shown(value)} must be True or False.")
  return bool(value)


def as_number(value: Any, name: str) -> float:
  """A finite number from any scalar, or from text such as "8/255" or "0.031". Raises ValueError for anything else."""
  try:
    numerator, slash, denominator = value.partition("/") if isinstance(value, str) else (value, "", "")
    number = float(numerator) / float(denominator if slash else 1)
  except (TypeError, ValueError, ZeroDivisionError, OverflowError):
    number = math.nan
  if not math.isfinite(number) or isinstance(value, bool) or np.ndim(value):
    raise ValueError(f"{name}={shown(value)} is not a number; write it as 8/255 or 0.031.")
  return number


def check_number(number: float, name: str, span: str) -> None:
  """Raises ValueError if a number is outside `span`, an interval such as "(0, 1]"."""
  low, high = map(float, span[1:-1].split(","))
  if not (low < number or (low == number and span[0] == "[")) or not number <= high:
    raise ValueError(f"{name}={number:g} is outside {span}.")


def warn_of_layout(shape: Sequence[int]) -> None:
  """Warns about images that look like PyTorch's [n, c, h, w]: the second axis has length 1 or 3, the last does not."""
  if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
    warnings.warn(
      f"images of shape {tuple(shape)} are taken as {shape[3]} channels of {shape[1]} x {shape[2]} pixels; if they are "
      "[n, c, h, w], transpose them to [n, h, w, c].",
      stacklevel=2,
    )
