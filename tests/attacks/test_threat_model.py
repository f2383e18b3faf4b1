"""The ball: projections are inside it and are nearest points; directions and samples have the stated norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lrat_jax.attacks import threat_model

NORMS = sorted(threat_model.NORMS)
_LENGTHS = {
  "linf": lambda d: np.abs(d).max(axis=(1, 2, 3)),
  "l2": lambda d: np.sqrt((d**2).sum(axis=(1, 2, 3))),
  "l1": lambda d: np.abs(d).sum(axis=(1, 2, 3)),
}


def _arrays(low, high):
  return hnp.arrays(np.float32, (2, 3, 3, 1), elements=st.floats(low, high, width=32))


@pytest.mark.parametrize("name", NORMS)
@given(originals=_arrays(0, 1), points=_arrays(-2, 3), epsilon=st.floats(0, 3))
def test_projection_is_inside_ball_and_range(name, originals, points, epsilon):
  projected = np.asarray(threat_model.project(points, originals, epsilon, threat_model.get_norm(name)))
  assert (_LENGTHS[name](projected - originals) <= epsilon + 1e-5).all()
  assert projected.min() >= 0 and projected.max() <= 1


@pytest.mark.parametrize("name", NORMS)
@given(originals=_arrays(0.25, 0.75), points=_arrays(0, 1))
def test_projection_keeps_points_that_are_inside(name, originals, points):
  epsilon = float(_LENGTHS[name](points - originals).max()) + 1e-3
  projected = threat_model.project(points, originals, epsilon, threat_model.get_norm(name))
  np.testing.assert_allclose(projected, points, atol=1e-6)


def test_l2_shrink_is_the_nearest_point():
  delta = np.array([3.0, 4.0], np.float32).reshape(1, 2, 1, 1)
  np.testing.assert_allclose(threat_model.get_norm("l2").shrink(delta, 1.0).ravel(), [0.6, 0.8], rtol=1e-6)


def test_l1_shrink_is_the_nearest_point():
  delta = np.array([3.0, -1.0, 0.5, 2.5], np.float32).reshape(1, 2, 2, 1)
  np.testing.assert_allclose(threat_model.get_norm("l1").shrink(delta, 2.5).ravel(), [1.5, 0, 0, 1.0], atol=1e-6)


def test_l1_direction_is_the_largest_coordinate():
  gradient = np.array([0.3, -2.0, 0.5, 1.0], np.float32).reshape(1, 2, 2, 1)
  np.testing.assert_array_equal(threat_model.get_norm("l1").steepest(gradient).ravel(), [0, -1, 0, 0])


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_l2_direction_has_unit_length_for_tiny_and_huge_gradients(scale):
  gradient = scale * jax.random.normal(jax.random.key(0), (4, 3, 3, 1))
  np.testing.assert_allclose(_LENGTHS["l2"](np.asarray(threat_model.get_norm("l2").steepest(gradient))), 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_direction_of_a_zero_gradient_is_zero(name):
  np.testing.assert_array_equal(threat_model.get_norm(name).steepest(jnp.zeros((2, 3, 3, 1))), 0.0)


@pytest.mark.parametrize("name", NORMS)
def test_samples_fill_the_unit_ball_uniformly(name):
  shape = (2, 1, 1)
  draws = jax.vmap(lambda key: threat_model.get_norm(name).sample(key, shape))(
    jax.random.split(jax.random.key(0), 4000)
  )
  lengths = _LENGTHS[name](np.asarray(draws))
  assert lengths.max() <= 1 + 1e-6
  # In two dimensions, a fraction r^2 of the volume is within radius r.
  for radius in (0.3, 0.6, 0.9):
    assert abs((lengths <= radius).mean() - radius**2) < 0.03


@pytest.mark.parametrize(("norm", "widest"), [("linf", 1.0), ("l2", 8.0), ("l1", 64.0)])
def test_epsilon_is_refused_outside_what_images_allow(norm, widest):
  threat_model.check_epsilon(widest, norm, (8, 8, 1))
  for epsilon in (-0.01, widest + 0.01, float("nan")):
    with pytest.raises(ValueError, match=rf"epsilon=.* is outside \[0, {widest:g}\]"):
      threat_model.check_epsilon(epsilon, norm, (8, 8, 1))


def test_unknown_norm_names_the_choices():
  with pytest.raises(ValueError, match=r"norm='l3' is unknown; choose from \['l1', 'l2', 'linf'\]"):
    threat_model.get_norm("l3")
