"""The projection onto the intersection of the L1 ball and [0, 1] against a solver, and the parts of an L1 run."""

import numpy as np
import pytest
import scipy.optimize

from lrat_jax.attacks import _l1


def _solve(point, original, epsilon):
  """The nearest point by SciPy, over positive and negative parts of the difference, so the constraint is linear."""
  n = len(point)
  target = point - original
  objective = lambda parts: 0.5 * np.sum((parts[:n] - parts[n:] - target) ** 2)
  slope = lambda parts: np.concatenate([parts[:n] - parts[n:] - target, -(parts[:n] - parts[n:] - target)])
  bounds = [(0, 1 - x) for x in original] + [(0, x) for x in original]
  budget = {"type": "ineq", "fun": lambda parts: epsilon - parts.sum(), "jac": lambda parts: -np.ones(2 * n)}
  start = np.zeros(2 * n)
  found = scipy.optimize.minimize(
    objective, start, jac=slope, bounds=bounds, constraints=[budget], options={"ftol": 1e-14, "maxiter": 500}
  )
  return original + found.x[:n] - found.x[n:]


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 2.5, 20.0])
def test_projection_is_the_nearest_point(epsilon):
  generator = np.random.default_rng(0)
  originals = generator.uniform(size=(6, 2, 5, 1)).astype(np.float32)
  points = (originals + generator.normal(size=originals.shape)).astype(np.float32)
  projected = np.asarray(_l1.project(points, originals, epsilon))
  expected = [_solve(p.ravel(), o.ravel(), epsilon) for p, o in zip(points, originals, strict=True)]
  np.testing.assert_allclose(projected.reshape(6, -1), expected, atol=1e-4)
  assert (np.abs(projected - originals).sum(axis=(1, 2, 3)) <= epsilon + 1e-5).all()


def test_projection_keeps_what_is_inside_and_shortens_to_nothing():
  originals = np.full((1, 2, 2, 1), 0.5, np.float32)
  inside = originals + np.array([0.1, -0.2, 0, 0.05], np.float32).reshape(1, 2, 2, 1)
  np.testing.assert_allclose(_l1.project(inside, originals, 0.4), inside, atol=1e-7)
  np.testing.assert_array_equal(_l1.project(inside, originals, 0.0), originals)


def test_a_run_has_parts_of_30_30_and_40_percent():
  assert _l1.schedule(100) == [(3.0, 30), (2.0, 30), (1.0, 40)]
  for num_steps in (1, 2, 3, 7, 10):
    assert sum(steps for _, steps in _l1.schedule(num_steps)) == num_steps
    assert all(steps >= 0 for _, steps in _l1.schedule(num_steps))
