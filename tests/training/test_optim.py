"""Schedules at their corners; SGD and AdamW against PyTorch's documented recurrences; clipping; weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lrat_jax.training import optim
from tests.helpers import make_config


def _schedule(total_steps=100, **fields):
  return optim.schedule(
    make_config(**{f"optimizer__{name}": value for name, value in fields.items()}).optimizer, total_steps
  )


def test_piecewise_falls_at_its_shares():
  rate = _schedule(schedule="piecewise", learning_rate=0.1, boundary_fractions=(0.5, 0.75), decay_rate=0.1)
  np.testing.assert_allclose(
    [rate(s) for s in (0, 49, 51, 74, 76, 99)], [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-5
  )


def test_cosine_warms_up_and_ends_at_zero():
  rate = _schedule(schedule="cosine", learning_rate=0.2, warmup=0.1)
  np.testing.assert_allclose([rate(s) for s in (0, 5, 10, 55, 100)], [0, 0.1, 0.2, 0.1, 0], atol=1e-6)
  assert _schedule(schedule="cosine", learning_rate=0.2, warmup=0.0)(0) == pytest.approx(0.2)


def test_one_cycle_peaks_after_its_warm_up():
  rate = _schedule(schedule="one_cycle", learning_rate=0.1, warmup=0.3)
  np.testing.assert_allclose([rate(0), rate(30)], [0.1 / 25, 0.1], rtol=1e-5)
  assert rate(99) < 1e-3 and max(rate(s) for s in range(100)) == pytest.approx(0.1)


def test_a_warm_up_of_the_whole_run_rises_to_the_peak():
  rate = _schedule(schedule="one_cycle", learning_rate=0.1, warmup=1.0)
  np.testing.assert_allclose([rate(0), rate(99)], [0.1 / 25, 0.1], rtol=1e-5)


def test_boundaries_at_the_same_step_count_twice():
  rate = _schedule(3, schedule="piecewise", learning_rate=0.1, boundary_fractions=(0.5, 0.75), decay_rate=0.1)
  np.testing.assert_allclose([rate(0), rate(3)], [0.1, 0.001], rtol=1e-5)


def test_constant_is_constant():
  assert _schedule(schedule="constant", learning_rate=0.1)(77) == 0.1


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_pytorchs(nesterov):
  """d = g + wd p; v = m v + d; p -= lr (d + m v if Nesterov else v)."""
  config = make_config(
    optimizer__schedule="constant", optimizer__learning_rate=0.1, optimizer__momentum=0.9,
    optimizer__weight_decay=0.01, optimizer__nesterov=nesterov,
  ).optimizer  # fmt: skip
  optimizer = optim.create(config, 10)
  p, v, ours = 1.0, 0.0, jnp.array(1.0)
  state = optimizer.init(ours)
  for g in (0.5, -0.2, 0.3):
    d = g + 0.01 * p
    v = 0.9 * v + d
    p -= 0.1 * (d + 0.9 * v if nesterov else v)
    updates, state = optimizer.update(jnp.array(g), state, ours)
    ours += updates
  assert float(ours) == pytest.approx(p, rel=1e-6)


def _updates(params, gradients, **fields):
  config = make_config(**{f"optimizer__{name}": value for name, value in fields.items()}).optimizer
  optimizer = optim.create(config, 10)
  return optimizer.update(gradients, optimizer.init(params), params)[0]


def test_adamw_is_pytorchs():
  """p -= lr wd p; m, v moving averages of g and g^2, corrected by 1 - beta^t; p -= lr m / (sqrt(v) + 1e-8)."""
  fields = {"name": "adamw", "schedule": "constant", "learning_rate": 0.01, "momentum": 0.8}
  fields |= {"second_momentum": 0.99, "weight_decay": 0.05}
  config = make_config(**{f"optimizer__{name}": value for name, value in fields.items()}).optimizer
  optimizer = optim.create(config, 10)
  p, m, v, ours = 1.0, 0.0, 0.0, jnp.array(1.0)
  state = optimizer.init(ours)
  for t, g in enumerate((0.5, -0.2, 0.3), start=1):
    m, v = 0.8 * m + 0.2 * g, 0.99 * v + 0.01 * g**2
    p -= 0.01 * 0.05 * p + 0.01 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
    updates, state = optimizer.update(jnp.array(g), state, ours)
    ours += updates
  assert float(ours) == pytest.approx(p, rel=1e-6)


@pytest.mark.parametrize(("clip_norm", "factor"), [(0.0, 1.0), (2.5, 0.5), (10.0, 1.0)])
def test_a_gradient_is_clipped_as_a_whole_before_decay_and_momentum(clip_norm, factor):
  params, gradients = {"a": jnp.array([1.0]), "b": jnp.array([2.0])}, {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
  fields = {"schedule": "constant", "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.1, "clip_norm": clip_norm}
  updates = _updates(params, gradients, **fields)
  np.testing.assert_allclose(updates["a"], [-(3 * factor + 0.1)], rtol=1e-6)
  np.testing.assert_allclose(updates["b"], [-(4 * factor + 0.2)], rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_kernels_alone_decay_where_that_is_asked_for(name):
  params = {
    "Conv_0": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)},
    "attention": {"kernel": jnp.ones((4, 2, 2)), "bias": jnp.ones((2, 2)), "temperature": jnp.ones((2, 1, 1))},
    "norm": {"scale": jnp.ones(2)},
    "positions": jnp.ones((1, 5, 2)),
    "table": jnp.ones((5, 2)),
  }
  fields = {"name": name, "schedule": "constant", "learning_rate": 1.0, "weight_decay": 0.1}
  still = jax.tree.map(jnp.zeros_like, params)
  moved = jax.tree.map(lambda u: bool(jnp.any(u)), _updates(params, still, decay="kernels", **fields))
  assert moved == {
    "Conv_0": {"kernel": True, "bias": False},
    "attention": {"kernel": True, "bias": False, "temperature": False},
    "norm": {"scale": False},
    "positions": False,
    "table": True,
  }
  assert all(jax.tree.leaves(jax.tree.map(lambda u: bool(jnp.all(u < 0)), _updates(params, still, **fields))))


def test_the_default_keeps_the_state_that_runs_have_saved():
  params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
  sgd = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(optax.constant_schedule(0.1), momentum=0.9))
  ours = optim.create(make_config(optimizer__schedule="constant").optimizer, 10)
  assert jax.tree.structure(ours.init(params)) == jax.tree.structure(sgd.init(params))


def test_unknown_optimizer_names_the_choices():
  with pytest.raises(ValueError, match="optimizer.name='adam' is unknown; choose from"):
    _updates(jnp.ones(1), jnp.ones(1), name="adam")


def test_unknown_schedule_names_the_choices():
  with pytest.raises(ValueError, match="optimizer.schedule='step' is unknown; choose from"):
    _schedule(schedule="step")
