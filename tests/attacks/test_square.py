"""Square: exactly the original's schedule and windows, and a search that never gets worse."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import attacks
from lrat_jax.attacks import losses

square_lib = importlib.import_module("lrat_jax.attacks._square")  # `attacks.square` is the attack


def test_window_sides_follow_the_schedule():
  # round(sqrt(0.8 / 2^stage * 28^2)), odd and at least 3 if windows have a pattern.
  assert square_lib.window_sides(28, 28, 0.8, "linf") == (25, 18, 13, 9, 6, 4, 3, 2, 2, 1)
  assert square_lib.window_sides(28, 28, 0.8, "l2") == (25, 19, 13, 9, 7, 5, 3, 3, 3, 3)
  assert square_lib.window_sides(32, 32, 0.8, "linf") == (29, 20, 14, 10, 7, 5, 4, 3, 2, 1)
  assert square_lib.window_sides(8, 3, 0.8, "linf")[0] == 3


def test_stages_change_after_the_listed_queries():
  last_queries = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
  assert square_lib._stage(0) == 0
  for stage, query in enumerate(last_queries):
    assert (square_lib._stage(query), square_lib._stage(query + 1)) == (stage, stage + 1)


def test_window_patterns_equal_the_originals():
  # Recorded from AutoAttack's SquareAttack.eta.
  upper, lower = [0.13608277, 0.68041384, 0.13608277], [-0.12909944, -0.6454972, -0.12909944]
  np.testing.assert_allclose(square_lib.window_pattern(3, "l2"), [upper, 3 * [-0.12909944], lower], atol=1e-6)
  upper, lower = [0.02631579, 0.44736847, 0.02631579], [-0.02272728, -0.3863637, -0.02272728]
  np.testing.assert_allclose(square_lib.window_pattern(3, "l1"), [upper, 3 * [-0.02272728], lower], atol=1e-6)
  top = [0.04916216, 0.15977703, 0.15977703, 0.15977703, 0.04916216]
  np.testing.assert_allclose(square_lib.window_pattern(5, "l2")[0], top, atol=1e-6)
  np.testing.assert_allclose(square_lib.window_pattern(1, "l2"), [[-1.0]])


@pytest.mark.parametrize("shape", [(6, 6, 2), (4, 7, 3), (7, 4, 1)])
def test_a_linf_query_changes_one_window_by_one_sign_a_channel(shape):
  images, epsilon = jnp.full((200, *shape), 0.5), 0.1
  num_draws, propose = square_lib._linf_proposal(images, epsilon, 0.3)
  draws = jax.random.uniform(jax.random.key(0), (200, num_draws))
  changes = np.asarray(propose(draws, images, 0) - images)
  side = square_lib.window_sides(*shape[:2], 0.3, "linf")[0]
  for change in changes:
    rows, columns = (np.flatnonzero(np.abs(change).sum(axis=axes)) for axes in ((1, 2), (0, 2)))
    assert rows.tolist() == list(range(rows[0], rows[0] + side))
    assert columns.tolist() == list(range(columns[0], columns[0] + side))
    window = change[rows[0] : rows[0] + side, columns[0] : columns[0] + side]
    np.testing.assert_allclose(np.abs(window), epsilon, atol=1e-6)
    assert (np.sign(window) == np.sign(window[0, 0])).all()
  reached = np.abs(changes).sum(axis=(0, 3)) > 0
  assert reached[:-1, :-1].all()
  assert not reached[-1].any() or side == shape[0]  # as in the original, windows stop one row before the end


def test_l1_points_spend_the_whole_ball_beside_a_wall():
  # Half of the pattern points out of [0, 1]; the length that it cannot use there is used by the other half.
  images, epsilon = jnp.full((20, 10, 10, 2), 0.98), 3.0
  start = square_lib._tiles_start(jax.random.split(jax.random.key(0), 20), images, epsilon, "l1")
  np.testing.assert_allclose(jnp.sum(jnp.abs(start - images), axis=(1, 2, 3)), epsilon, rtol=1e-4)
  assert start.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(10, 10, 2), (4, 7, 3)])
def test_l2_points_lie_on_the_sphere_and_move_between_two_windows(shape):
  images, epsilon = jnp.full((50, *shape), 0.5), 0.3
  keys = jax.random.split(jax.random.key(0), 50)
  start = square_lib._tiles_start(keys, images, epsilon, "l2")
  num_draws, propose = square_lib._pattern_proposal(images, epsilon, 0.1, "l2")
  draws = jax.random.uniform(jax.random.key(1), (50, num_draws))
  points = propose(draws, start, 0)
  for delta in (start - images, points - images):
    np.testing.assert_allclose(jnp.sqrt(jnp.sum(delta**2, axis=(1, 2, 3))), epsilon, rtol=1e-5)
  side = square_lib.window_sides(*shape[:2], 0.1, "l2")[0]
  outside = np.asarray(jnp.isclose((points - images), (start - images), rtol=1e-3, atol=1e-6).all(axis=-1))
  changed = (~outside).sum(axis=(1, 2))
  assert (changed > 0).all() and changed.max() <= 2 * side**2


def test_more_queries_never_lower_the_margin(keys, images, cnn_logits):
  labels = cnn_logits(images).argmax(axis=1)
  margins = []
  for num_queries in (0, 5, 25):
    run = jax.jit(functools.partial(attacks.square, logits_fn=cnn_logits, epsilon=0.02, num_queries=num_queries))
    result = run(keys, images=images, labels=labels)
    margins.append(losses.margin(cnn_logits(result.images), labels))
    fooled = margins[-1] > 0
    np.testing.assert_array_equal(result.surviving_steps[~fooled], num_queries + 1)
    assert (result.surviving_steps[fooled] <= num_queries).all()
  right = margins[0] <= 0
  assert (margins[1] >= margins[0] - 1e-5)[right].all() and (margins[2] >= margins[1] - 1e-5)[margins[1] <= 0].all()
  assert margins[2].mean() > margins[0].mean()


def test_a_constant_model_survives_every_query(keys, images):
  logits_fn = lambda x: jnp.zeros((x.shape[0], 3)) + 0 * x.sum(axis=(1, 2, 3))[:, None]
  result = attacks.square(keys, logits_fn, images, jnp.zeros(16, int), epsilon=0.1, num_queries=3)
  np.testing.assert_array_equal(result.surviving_steps, 4)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"p_init": 0.0}, r"p_init=0 is outside \(0, 1\]"),
    ({"num_queries": -1}, "num_queries=-1 must be an integer from 0"),
    ({"epsilon": -1.0}, r"epsilon=-1 is outside \[0, 1\]"),
    ({"norm": "l7"}, "norm='l7' is unknown; choose from"),
  ],
)
def test_bad_arguments_are_named(change, message, keys, images, labels, linear_logits):
  with pytest.raises(ValueError, match=message):
    attacks.square(keys, linear_logits, images, labels, **({"epsilon": 0.1} | change))
