"""User-defined code: finds the function that "package.module:function" names, and reports its errors in one line.

It is in this package because attacks import no other part of the project; models, weightings, data sets and `--model`
use it too. No other file imports a module by its name.
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
  "CallCompactUnboundModuleError": "; pass a Flax module as a function: lambda images: module.apply(variables, images)",
  "TraceContextError": "; if a Flax NNX model is in training mode, call model.eval() first",
  "TracerArrayConversionError": "; it must be written in JAX, but it calls NumPy",
}
_NAME = re.compile(r"((?!\d)\w+(?:\.(?!\d)\w+)*):((?!\d)\w+(?:\.(?!\d)\w+)*)")


def is_name(value: Any) -> bool:
  """Whether a value is text of the form "package.module:function", which `find` would import."""
  return isinstance(value, str) and _NAME.fullmatch(value) is not None


def hint(error: BaseException) -> str:
  """Advice for an exception whose message does not say what to do; usually empty."""
  return _HINTS.get(type(error).__name__, "")


def reason(error: BaseException) -> str:
  """The type of an exception, the most informative line of its message, and its `hint`."""
  lines = str(error).strip().splitlines()
  # JAX quotes the whole traceback of a callback; the callback's own message is the last line.
  place = -1 if isinstance(error, jax.errors.JaxRuntimeError) else 0
  return (f"{type(error).__name__}: {lines[place]}" if lines else type(error).__name__) + hint(error)


def find(name: str) -> Any:
  """The object that "package.module:function" names. The module is imported, so its code runs.

  Raises:
    UserCodeError: the name has another form, the module is missing or fails, or it has no such object.
  """
  if not is_name(name):
    raise UserCodeError(f"{name!r} is not understood; write package.module:function.")
  module_name, path = _NAME.fullmatch(name).groups()
  try:
    module = importlib.import_module(module_name)
  except (Exception, SystemExit) as error:  # anything that user code raises; scripts end with sys.exit
    raise UserCodeError(f"{name!r}: module {module_name!r} cannot be imported ({reason(error)}).") from error
  try:
    return operator.attrgetter(path)(module)
  except AttributeError:
    raise UserCodeError(f"{name!r}: module {module_name!r} has no {path!r}.") from None


def function(name: str) -> Callable[..., Any]:
  """The function of that name; whenever it is called, its exceptions are raised as UserCodeErrors.

  Raises:
    UserCodeError: as in `find`, or the object is not callable.
  """
  found = find(name)
  if not callable(found):
    raise UserCodeError(f"{name!r} is {type(found).__name__}, not a function.")

  @functools.wraps(found, updated=())
  def call(*arguments: Any, **named: Any) -> Any:
    try:
      return found(*arguments, **named)
    except UserCodeError:
      raise
    except Exception as error:  # anything that user code raises
      raise UserCodeError(f"{name!r} failed ({reason(error)}).") from error

  return call


def parameters(name: str, function: Callable[..., Any], positional: int, form: str) -> dict[str, inspect.Parameter]:
  """The parameters of a function after its first `positional` ones, which are given by position.

  Raises:
    UserCodeError: it takes fewer by position, or has no signature; `form` is a description of what it should take.
  """
  try:
    found = inspect.signature(function).parameters
  except (TypeError, ValueError):  # some built-in callables have no signature
    raise UserCodeError(f"{name!r} does not say which arguments it takes; it must take {form}.") from None
  by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
  first = list(found.values())[:positional]
  if len(first) < positional or not all(p.kind in by_position for p in first):
    raise UserCodeError(f"{name!r} takes ({', '.join(map(str, found.values()))}); it must take {form}.")
  return dict(list(found.items())[positional:])
