"""The user's code: a function that "package.module:function" names, and what it raises as one line.

In this package because attacks import nothing else of the project; models, weightings, data sets and `--model` are
found here too. No other file imports a module by its name.
"""

import functools
import importlib
import inspect
import operator
import re
from collections.abc import Callable
from typing import Any

import jax

from lrat_jax.core.errors import UserCodeError

_HINTS = {
  "CallCompactUnboundModuleError": "; give a Flax module as a function: lambda images: module.apply(variables, images)",
  "TraceContextError": "; does a Flax NNX model train? Call model.eval() before it is evaluated",
  "TracerArrayConversionError": "; it must be written in JAX, and this calls NumPy",
}
_NAME = re.compile(r"((?!\d)\w+(?:\.(?!\d)\w+)*):((?!\d)\w+(?:\.(?!\d)\w+)*)")


def is_name(value: Any) -> bool:
  """Whether a value is text of the form "package.module:function", which `find` would import."""
  return isinstance(value, str) and _NAME.fullmatch(value) is not None


def hint(error: BaseException) -> str:
  """What to do about an exception whose own words do not tell; mostly nothing."""
  return _HINTS.get(type(error).__name__, "")


def reason(error: BaseException) -> str:
  """What kind of exception it is, and the line that says most of it."""
  lines = str(error).strip().splitlines()
  # JAX quotes the whole traceback of a callback, whose own words come last.
  place = -1 if isinstance(error, jax.errors.JaxRuntimeError) else 0
  return (f"{type(error).__name__}: {lines[place]}" if lines else type(error).__name__) + hint(error)


def find(name: str) -> Any:
  """What "package.module:function" names. The module is imported, so its code runs.

  Raises:
    UserCodeError: another form of name, a module that is not there or fails, or a name that it lacks.
  """
  if not is_name(name):
    raise UserCodeError(f"{name!r} is not understood; write package.module:function.")
  module_name, path = _NAME.fullmatch(name).groups()
  try:
    module = importlib.import_module(module_name)
  except (Exception, SystemExit) as error:  # whatever the user's code raises; scripts end by sys.exit
    raise UserCodeError(f"{name!r}: module {module_name!r} cannot be imported ({reason(error)}).") from error
  try:
    return operator.attrgetter(path)(module)
  except AttributeError:
    raise UserCodeError(f"{name!r}: module {module_name!r} has no {path!r}.") from None


def function(name: str) -> Callable[..., Any]:
  """The function of that name, whose exceptions are UserCodeErrors wherever it is called.

  Raises:
    UserCodeError: as `find`, or it cannot be called.
  """
  found = find(name)
  if not callable(found):
    raise UserCodeError(f"{name!r} is {type(found).__name__}, no function.")

  @functools.wraps(found, updated=())
  def call(*arguments: Any, **named: Any) -> Any:
    try:
      return found(*arguments, **named)
    except UserCodeError:
      raise
    except Exception as error:  # whatever the user's code raises
      raise UserCodeError(f"{name!r} failed ({reason(error)}).") from error

  return call


def parameters(name: str, function: Callable[..., Any], positional: int, form: str) -> dict[str, inspect.Parameter]:
  """The parameters of a function behind its first so many, which are given by position.

  Raises:
    UserCodeError: it takes fewer by position, or does not say what it takes; `form` is what it should take, in words.
  """
  try:
    found = inspect.signature(function).parameters
  except (TypeError, ValueError):  # some built-in callables do not say
    raise UserCodeError(f"{name!r} does not say what it takes; it must take {form}.") from None
  by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
  first = list(found.values())[:positional]
  if len(first) < positional or not all(p.kind in by_position for p in first):
    raise UserCodeError(f"{name!r} takes ({', '.join(map(str, found.values()))}); it must take {form}.")
  return dict(list(found.items())[positional:])
