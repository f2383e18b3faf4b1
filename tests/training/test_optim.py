"""Schedules at their corners, and SGD against the recurrence that PyTorch documents."""

import jax.numpy as jnp
import numpy as np
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


def test_unknown_schedule_names_the_choices():
  with pytest.raises(ValueError, match="optimizer.schedule='step' is unknown; choose from"):
    _schedule(schedule="step")
