"""Any model with the convolutions of this package: its jaxpr is traced, and run with its convolutions replaced."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend import core
from jax.tree_util import Partial

from lrat_jax.convolutions import conv2d

# The name of the jitted function in which convolutions are not replaced.
_AS_WRITTEN = "convolutions_as_written"
# Operations whose inner functions are rewritten too. Not those with a custom differentiation rule, because the rule was
# written for the original function.
_ENTERED = ("jit", "scan", "while", "cond", "remat2")


def as_written(function: Callable[..., Any]) -> Callable[..., Any]:
  """Jits a model, or a part of one, so that attacks on CPU do not replace its convolutions (`rewritten`)."""
  if isinstance(function, Partial):
    return Partial(as_written(function.func), *function.args, **function.keywords)

  def convolutions_as_written(*args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)

  return jax.jit(convolutions_as_written)


def rewritten(function: Callable[..., Any]) -> Callable[..., Any]:
  """The same function of arrays, with `conv2d` in place of the convolutions that it supports.

  These are two-dimensional float32 convolutions in any layout, without dilation, groups or negative padding, forward
  and in gradients. Functions inside jit, scan, while, cond and remat are rewritten too; functions with custom
  differentiation rules, and `as_written` ones, are not. Results are equal up to rounding on CPU, and exactly elsewhere.
  """

  def call(*args: Any) -> Any:
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    results = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), results)

  return call


def sizes(function: Callable[..., Any], *args: Any) -> tuple[int, int]:
  """The total size of the outputs of all convolutions in a function of arrays, and that of their kernels."""
  return _sizes(jax.make_jaxpr(function)(*args).jaxpr)


def _sizes(jaxpr: core.Jaxpr) -> tuple[int, int]:
  outputs = kernels = 0
  for equation in jaxpr.eqns:
    inner = list(core.jaxprs_in_params(equation.params))
    if platforms := equation.params.get("branches_platforms"):  # one is run; the default one has the whole convolution
      inner = [equation.params["branches"][platforms.index(None)].jaxpr] if None in platforms else []
    elif equation.primitive.name == "conv_general_dilated":
      result, kernel = (cast(Any, atom.aval) for atom in (equation.outvars[0], equation.invars[1]))
      outputs, kernels = outputs + result.size, kernels + kernel.size
    for more_outputs, more_kernels in map(_sizes, inner):
      outputs, kernels = outputs + more_outputs, kernels + more_kernels
  return outputs, kernels


def _run(jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
  """Evaluates a jaxpr, one operation after the other, with supported convolutions by `conv2d`."""
  values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
  value_of = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]
  for equation in jaxpr.eqns:
    operands = [value_of(atom) for atom in equation.invars]
    if _can_do(equation):
      results: Sequence[Any] = [_convolution(*operands, **equation.params)]
    elif equation.primitive.name == "remat2" and _has_convolutions(equation):
      results = _checkpointed(operands, **equation.params)
    else:
      results = _run_as_it_is(jaxpr, _with_functions_rewritten(equation), operands)
    values.update(zip(equation.outvars, results, strict=True))
  return [value_of(atom) for atom in jaxpr.outvars]


def _run_as_it_is(jaxpr: core.Jaxpr, equation: core.JaxprEqn, operands: list[Any]) -> Sequence[Any]:
  """Evaluates one operation of a jaxpr with JAX's own evaluation."""
  inputs = {atom: value for atom, value in zip(equation.invars, operands, strict=True) if isinstance(atom, core.Var)}
  one = jaxpr.replace(constvars=[], invars=list(inputs), outvars=equation.outvars, eqns=[equation], debug_info=None)
  return core.jaxpr_as_fun(core.ClosedJaxpr(one, ()))(*inputs.values())


def _checkpointed(operands: list[Any], *, jaxpr: core.Jaxpr, policy: Any, prevent_cse: Any, **_: Any) -> Sequence[Any]:
  run = lambda *arguments: _run(jaxpr, (), arguments)
  return jax.checkpoint(run, policy=policy, prevent_cse=prevent_cse)(*operands)


def _with_functions_rewritten(equation: core.JaxprEqn) -> core.JaxprEqn:
  """An operation with the convolutions in its inner functions replaced."""
  if not _has_convolutions(equation):
    return equation
  params = {name: jax.tree.map(_rewritten, value, is_leaf=_is_jaxpr) for name, value in equation.params.items()}
  return equation.replace(params=params)


def _is_jaxpr(value: Any) -> bool:
  return isinstance(value, core.ClosedJaxpr)


def _rewritten(value: Any) -> Any:
  """A jaxpr among an operation's parameters with its convolutions replaced; any other parameter unchanged."""
  if not _is_jaxpr(value):
    return value
  run = lambda *arguments: _run(value.jaxpr, value.consts, arguments)
  return jax.make_jaxpr(run)(*[jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in value.in_avals])


def _has_convolutions(equation: core.JaxprEqn) -> bool:
  """Whether an operation is one that is rewritten, and its inner functions have convolutions to replace."""
  if equation.primitive.name not in _ENTERED or equation.params.get("name") == _AS_WRITTEN:
    return False
  if equation.params.get("branches_platforms"):  # it chooses by platform already, as `conv2d` itself does
    return False
  inner = [e for jaxpr in core.jaxprs_in_params(equation.params) for e in jaxpr.eqns]
  return any(_can_do(e) or _has_convolutions(e) for e in inner)


def _can_do(equation: core.JaxprEqn) -> bool:
  """Whether an operation is a convolution that `conv2d` computes."""
  if equation.primitive.name != "conv_general_dilated":
    return False
  params = equation.params
  shapes: list[Any] = [atom.aval for atom in (*equation.invars, *equation.outvars)]
  return (
    all(shape.dtype == jnp.float32 and shape.ndim == 4 for shape in shapes)
    and params["feature_group_count"] == params["batch_group_count"] == 1
    and set((*params["lhs_dilation"], *params["rhs_dilation"])) == {1}
    and all(side >= 0 for sides in params["padding"] for side in sides)
  )


def _convolution(x: Array, kernel: Array, **params: Any) -> Array:
  """A supported `lax.conv_general_dilated` (`_can_do`): by `conv2d` on CPU, and unchanged elsewhere."""
  lhs, rhs, out = params["dimension_numbers"]

  def cpu(x: Array, kernel: Array) -> Array:
    x = x.transpose(lhs[0], *lhs[2:], lhs[1])
    kernel = kernel.transpose(*rhs[2:], rhs[1], rhs[0])
    y = conv2d.on_cpu(x, kernel, tuple(params["window_strides"]), tuple(params["padding"]))
    places = {place: axis for axis, place in enumerate((out[0], *out[2:], out[1]))}
    return y.transpose([places[place] for place in range(4)])

  default = functools.partial(lax.conv_general_dilated_p.bind, **params)
  return lax.platform_dependent(x, kernel, cpu=cpu, default=default)
