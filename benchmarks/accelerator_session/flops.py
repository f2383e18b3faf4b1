"""Floating-point operations of a network, counted in its traced program."""

import math
from collections.abc import Callable, Iterator

import jax
from jax.extend import core


def _equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
  """All equations of a program without loops, including those of the functions that it calls."""
  for equation in jaxpr.eqns:
    inner = [value for value in equation.params.values() if isinstance(value, core.Jaxpr | core.ClosedJaxpr)]
    for called in inner:
      yield from _equations(called.jaxpr if isinstance(called, core.ClosedJaxpr) else called)
    if not inner:
      yield equation


def count(function: Callable, *arguments) -> int:
  """Operations (two for each multiplication and addition) of the convolutions and matrix products of one call."""
  total = 0
  for equation in _equations(jax.make_jaxpr(function)(*arguments).jaxpr):
    if equation.primitive.name == "conv_general_dilated":
      kernel = equation.invars[1].aval.shape
      outputs = equation.params["dimension_numbers"].rhs_spec[0]
      total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[outputs]
    elif equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
  return total
