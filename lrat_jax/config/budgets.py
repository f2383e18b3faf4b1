"""Attack budgets: a preset's radius and step size in each norm, as text, and the steps of its training attacks."""

from collections.abc import Mapping
from typing import Any

from lrat_jax.core.arguments import as_number

# (epsilon, step_size) by norm, "num_steps", and "spatial": the largest rotation in degrees and shift in pixels.
Budget = Mapping[str, Any]

NORMS = ("linf", "l2", "l1")


def budget(
  linf: tuple[str, str], l2: tuple[str, str], l1: tuple[str, str], *, num_steps: int, spatial: tuple[float, float]
) -> Budget:
  """A preset's budget.

  L1's step sizes were selected on validation images of networks trained in L2: with them, PGD leaves the same robust
  accuracy as APGD with the same number of steps.
  """
  return dict(linf=linf, l2=l2, l1=l1, num_steps=num_steps, spatial=spatial)


def iterated(budget: Budget, norm: str, num_steps: int, **arguments: Any) -> dict[str, Any]:
  """An iterative attack with a preset's radius and step size in a norm."""
  epsilon, step_size = budget[norm]
  return dict(norm=norm, epsilon=epsilon, step_size=step_size, num_steps=num_steps, num_restarts=1, **arguments)


def times(length: str, factor: float) -> str:
  """A multiple of a length; "8/255" keeps its denominator."""
  numerator, _, denominator = length.partition("/")
  return f"{float(numerator) * factor:.6g}" + (f"/{denominator}" if denominator else "")


def with_radius(budget: Budget, norm: str, radius: str) -> Budget:
  """A preset's budget with another radius in a norm; the step size stays the same share of the radius.

  Raises:
    ValueError: the radius is not a number above 0.
  """
  old_radius, old_step_size = budget[norm]
  if as_number(radius, norm) <= 0:
    raise ValueError(f"{norm}={radius} must be above 0.")
  share = as_number(old_step_size, "step_size") / as_number(old_radius, "epsilon")
  return {**budget, norm: (radius, times(radius, share))}


def with_tenths(budget: Budget) -> Budget:
  """A preset's budget with steps of a tenth of the radius in L-infinity, for PGD with ten steps or more."""
  epsilon = budget["linf"][0]
  return {**budget, "linf": (epsilon, times(epsilon, 0.1))}
