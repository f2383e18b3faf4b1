"""User-defined models: finds a Python object by its name, and checks that it behaves as a classifier."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lrat_jax.core import microbatch, user_code
from lrat_jax.core.user_code import reason
from lrat_jax.models.networks import Applied

LogitsFn = Callable[[jax.Array], jax.Array]


class UserModelError(ValueError):
  """A named object is not a model; the message is one line that says what is wrong with it."""


def _takes_nothing(found: Any) -> bool:
  try:
    return not inspect.signature(found).parameters
  except (TypeError, ValueError):  # some built-in callables have no signature
    return False


def find(name: str) -> LogitsFn:
  """The function images -> logits named by "package.module:function"; a function without arguments must return it.

  The module is imported, so its code runs.

  Raises:
    UserModelError: the module or name is missing, the module or the function without arguments fails, or the object
      is not callable.
  """
  try:
    found = user_code.find(name)
  except user_code.UserCodeError as error:
    raise UserModelError(str(error)) from error
  if callable(found) and _takes_nothing(found):
    try:
      found = found()
    except Exception as error:  # whatever the user's code raises
      raise UserModelError(f"{name!r} failed when it was called to create the model ({reason(error)}).") from error
  found = microbatch.any_batch_size(found)
  if not callable(found):
    raise UserModelError(f"{name!r} is {type(found).__name__}, not a function from images to logits.")
  return found


def _guarded(name: str, function: LogitsFn, num_classes: int | None) -> LogitsFn:
  """The function with float32 logits; its exceptions and wrong shapes raise UserModelError, wherever it is called.

  Without `num_classes`, any number of logits from 2 on is accepted.
  """

  def call(*arguments: Any, **named: Any) -> jax.Array:
    images = arguments[-1]
    try:
      logits = function(*arguments, **named)
    except Exception as error:  # whatever the user's code raises
      raise UserModelError(f"{name!r} failed on images {images.shape} under jax.jit ({reason(error)}).") from error
    found = logits.shape if isinstance(logits, jax.Array) and jnp.issubdtype(logits.dtype, jnp.floating) else ()
    classes = num_classes or (found[1] if len(found) == 2 else 0)
    if found != (len(images), classes) or classes < 2:
      got = f"{logits.dtype} {logits.shape}" if isinstance(logits, jax.Array) else type(logits).__name__
      expected = f"({len(images)}, {num_classes or 'classes'})"
      more = classes and len(found) == 2 and found[1] > classes
      why = "; outputs beyond the data's classes, such as a reject class, are not supported" if more else ""
      raise UserModelError(
        f"{name!r} returns {got} for images {images.shape}; it must return float logits {expected}{why}."
      )
    return logits.astype(jnp.float32)

  return call


def checked(name: str, logits_fn: LogitsFn, images: np.ndarray, num_classes: int | None = None) -> tuple[LogitsFn, int]:
  """Checks a function on a few images float32 [n, h, w, c]; returns it with checks in each call, and its class count.

  A model may fail only on batches of another size, so the returned function raises the same one-line errors later.
  Without `num_classes`, any number from 2 on is accepted.

  Raises:
    UserModelError: the function fails, cannot be compiled, or does not return finite floats [n, num_classes].
  """
  if isinstance(logits_fn, Partial):  # its parameters remain arguments of the compiled function
    watched: Any = _guarded(name, logits_fn.func, num_classes)
    if isinstance(logits_fn.func, Applied):
      watched = dataclasses.replace(logits_fn.func, logits=watched)
    guarded: LogitsFn = Partial(watched, *logits_fn.args, **logits_fn.keywords)
  else:
    guarded = _guarded(name, logits_fn, num_classes)
  try:
    logits = jax.jit(guarded)(jnp.asarray(images))
  except UserModelError:
    raise
  except Exception as error:  # JAX's error for a model that it cannot compile or run
    raise UserModelError(f"{name!r} failed on images {images.shape} under jax.jit ({reason(error)}).") from error
  if not bool(jnp.all(jnp.isfinite(jnp.max(logits, axis=-1)))):  # -inf is allowed: a class that the model excludes
    raise UserModelError(f"{name!r} returns logits that are NaN or infinite.")
  return (guarded, num_classes) if num_classes else checked(name, logits_fn, images, logits.shape[1])
