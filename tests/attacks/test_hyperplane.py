"""Steps onto hyperplanes: as short as a solver's, on the plane if the box allows it, never outside the box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from lrat_jax.attacks import _hyperplane

NORMS = ["linf", "l2", "l1"]
_LENGTHS = {
  "linf": lambda d: np.abs(d).max(axis=-1),
  "l2": lambda d: np.sqrt((d**2).sum(axis=-1)),
  "l1": lambda d: np.abs(d).sum(axis=-1),
}


def _problems(count=60, size=12, seed=0):
  """Points (some entries 0 or 1), normals (some entries 0), values of both signs, shares of the reach (some > 1)."""
  draw = np.random.default_rng(seed)
  points = np.clip(draw.uniform(-0.2, 1.2, (count, size)), 0, 1)
  normals = draw.normal(size=(count, size)) * (draw.uniform(size=(count, size)) > 0.2)
  direction = np.sign(draw.normal(size=count))
  corners = np.where(normals * direction[:, None] > 0, points, 1 - points)
  reach = (np.abs(normals) * corners).sum(axis=1)
  share = draw.uniform(0, 1.1, count)
  return points, normals, direction * share * reach, share


def _shortest(point, normal, value, norm):
  """The minimum length of a step onto the hyperplane, from a linear or quadratic program."""
  size = len(point)
  bounds = list(zip(-point, 1 - point, strict=True))
  if norm == "l2":
    result = optimize.minimize(
      lambda d: d @ d,
      np.zeros(size),
      jac=lambda d: 2 * d,
      bounds=bounds,
      constraints={"type": "eq", "fun": lambda d: normal @ d + value, "jac": lambda d: normal},
      options={"ftol": 1e-14, "maxiter": 500},
    )
    return np.sqrt(result.fun)
  extra = 1 if norm == "linf" else size  # variables that bound all entries together, or each one
  limits = -np.ones((size, 1)) if norm == "linf" else -np.eye(size)
  result = optimize.linprog(
    np.concatenate([np.zeros(size), np.ones(extra)]),
    A_ub=np.block([[np.eye(size), limits], [-np.eye(size), limits]]),
    b_ub=np.zeros(2 * size),
    A_eq=np.concatenate([normal, np.zeros(extra)])[None],
    b_eq=[-value],
    bounds=bounds + [(0, None)] * extra,
  )
  return result.fun


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_steps_are_as_short_as_a_solvers(norm):
  points, normals, values, share = _problems()
  steps = np.asarray(_hyperplane.step_onto(*map(jnp.float32, (points, normals, values)), norm))
  assert (points + steps).min() >= -1e-6 and (points + steps).max() <= 1 + 1e-6
  reachable = share < 0.99
  assert 40 < reachable.sum() < 60
  np.testing.assert_allclose((normals * steps).sum(axis=1)[reachable], -values[reachable], atol=1e-4)
  expected = [_shortest(points[i], normals[i], values[i], norm) for i in np.flatnonzero(reachable)]
  np.testing.assert_allclose(_LENGTHS[norm](steps[reachable]), expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_out_of_reach_ends_in_the_nearest_corner(norm):
  points, normals, values, share = _problems()
  steps = np.asarray(_hyperplane.step_onto(*map(jnp.float32, (points, normals, values)), norm))
  beyond = share > 1.001
  towards = np.where(normals * np.sign(values)[:, None] > 0, 0.0, 1.0)
  expected = np.where(normals == 0, points, towards)
  assert beyond.any()
  np.testing.assert_allclose((points + steps)[beyond], expected[beyond], atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_steps_do_not_depend_on_the_scale_of_the_function(norm, scale):
  points, normals, values, _ = map(jnp.float32, _problems())
  expected = _hyperplane.step_onto(points, normals, values, norm)
  np.testing.assert_allclose(_hyperplane.step_onto(points, normals * scale, values * scale, norm), expected, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_a_constant_function_moves_nothing(norm):
  points = jnp.full((2, 2, 2, 1), 0.5)
  steps = _hyperplane.step_onto(points, jnp.zeros_like(points), jnp.array([1.0, 0.0]), norm)
  np.testing.assert_array_equal(steps, 0.0)


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_does_not_depend_on_the_batch(norm):
  points, normals, values, _ = map(jnp.float32, _problems())
  step = jax.jit(lambda *arrays: _hyperplane.step_onto(*arrays, norm))
  whole = step(points, normals, values)
  single = jnp.concatenate([step(points[i : i + 1], normals[i : i + 1], values[i : i + 1]) for i in range(8)])
  np.testing.assert_allclose(single, whole[:8], atol=1e-6)
