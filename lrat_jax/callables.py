"""A model that the user brings: a Python object found by its name, and whether it answers as a classifier does."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LogitsFn = Callable[[jax.Array], jax.Array]


class CallableError(ValueError):
  """A named object that is no model; the message is one line that says what is wrong with it."""


def _reason(error: BaseException) -> str:
  lines = str(error).strip().splitlines()
  return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _takes_nothing(found: Any) -> bool:
  try:
    return not inspect.signature(found).parameters
  except (TypeError, ValueError):  # some built-in callables do not say
    return False


def find(name: str) -> LogitsFn:
  """The function that "package.module:function" names: images -> logits, or without arguments one that returns such.

  The module is imported, so its code runs.

  Raises:
    CallableError: no such module or name, a module that fails, or an object that cannot be called.
  """
  module_name, colon, path = name.partition(":")
  if not (module_name and colon and path):
    raise CallableError(f"{name!r} is not understood; write package.module:function.")
  try:
    found = importlib.import_module(module_name)
  except Exception as error:  # whatever the user's code raises
    raise CallableError(f"{name!r}: module {module_name!r} cannot be imported ({_reason(error)}).") from error
  try:
    for part in path.split("."):
      found = getattr(found, part)
  except AttributeError:
    raise CallableError(f"{name!r}: module {module_name!r} has no {path!r}.") from None
  if callable(found) and _takes_nothing(found):
    try:
      found = found()
    except Exception as error:  # whatever the user's code raises
      raise CallableError(f"{name!r} failed when it was called for its model ({_reason(error)}).") from error
  if not callable(found):
    raise CallableError(f"{name!r} is {type(found).__name__}, no function from images to logits.")
  return found


def check(name: str, logits_fn: LogitsFn, images: np.ndarray, num_classes: int) -> None:
  """Asks for the logits of a few images float32 [n, h, w, c].

  Raises:
    CallableError: it fails, cannot be compiled, or returns no finite floats [n, num_classes].
  """
  try:
    logits = jax.jit(logits_fn)(jnp.asarray(images))
  except Exception as error:  # whatever the user's code raises
    raise CallableError(f"{name!r} failed on images {images.shape} under jax.jit ({_reason(error)}).") from error
  expected = (len(images), num_classes)
  if not isinstance(logits, jax.Array) or logits.shape != expected or not jnp.issubdtype(logits.dtype, jnp.floating):
    got = f"{logits.dtype} {logits.shape}" if isinstance(logits, jax.Array) else type(logits).__name__
    raise CallableError(f"{name!r} returns {got} for images {images.shape}; it must return float logits {expected}.")
  if not bool(jnp.all(jnp.isfinite(logits))):
    raise CallableError(f"{name!r} returns logits that are NaN or infinite.")
