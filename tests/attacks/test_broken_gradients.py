"""Gradients with NaN coordinates: an attack takes no step in these, and its usual steps in the others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import attacks
from lrat_jax.attacks import registry

BALLS = {"linf": 0.05, "l2": 0.3, "l1": 1.0}
STEPS = {
  "fgsm": {},
  "pgd": {"step_size": 0.02, "num_steps": 5, "random_start": "none"},
  "cw": {"step_size": 0.02, "num_steps": 5, "random_start": "none"},
  "apgd": {"num_steps": 10},
  "apgd targeted": {"num_steps": 10, "loss": "margin_targeted", "target_rank": 1},
  "fab": {"num_steps": 5},
  "fab targeted": {"num_steps": 5, "target_rank": 1},
  "ddn": {"num_steps": 5, "init_norm": 0.25},
  "fmn": {"num_steps": 5},
  "deepfool": {"num_steps": 5},
  "carlini_wagner": {"num_steps": 40, "binary_search_steps": 3, "learning_rate": 0.05, "initial_const": 1.0},
}


def _identity(x):
  return x


def _with_backward(change):
  """The identity, with its gradient changed by `change`."""
  function = jax.custom_vjp(_identity)
  function.defvjp(lambda x: (x, None), lambda _, gradient: (change(gradient),))
  return function


ROWS = slice(None, None, 4)
BROKEN = _with_backward(lambda gradient: gradient.at[:, ROWS].set(jnp.nan))
ZERO = _with_backward(lambda gradient: gradient.at[:, ROWS].set(0.0))
FEW_NORMS = {"carlini_wagner": ("l2",), "ddn": ("l2",), "deepfool": ("linf", "l2")}
NORMS = [(name, norm) for name in STEPS for norm in FEW_NORMS.get(name, BALLS)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), NORMS)
def test_a_coordinate_without_a_gradient_takes_no_step_and_the_others_do(name, norm, keys, images, linear_logits):
  labels = linear_logits(images).argmax(axis=1)
  options = STEPS[name] | ({} if name == "carlini_wagner" else {"epsilon": BALLS[norm], "norm": norm})
  attack = functools.partial(registry.REGISTRY[name.split()[0]], keys, images=images, labels=labels, **options)
  found, expected = (attack(lambda x, way=way: linear_logits(way(x))) for way in (BROKEN, ZERO))
  if name != "carlini_wagner":  # its Adam takes a full step even for a tiny gradient of the distance
    np.testing.assert_array_equal(found.images, expected.images)
    assert (np.asarray(found.broken_gradients) > 0).all() and not np.asarray(expected.broken_gradients).any()
  if name in ("fgsm", "pgd", "cw"):
    np.testing.assert_array_equal(found.broken_gradients, options.get("num_steps", 1))
  assert found.success.any() or name == "fgsm"
  if name.split()[0] not in ("apgd",):  # it starts at a random point
    np.testing.assert_allclose(found.images[:, ROWS], images[:, ROWS], atol=1e-5)


@pytest.mark.parametrize(("way", "said"), [(BROKEN, 2), (ZERO, 0)])
def test_autoattack_says_where_survivors_had_no_gradient(way, said, images, linear_logits):
  labels = np.asarray(linear_logits(images).argmax(axis=1))
  report = attacks.autoattack(
    jax.random.key(0), lambda x: linear_logits(way(x)), images, labels, epsilon=0.01, version="apgd",
    overrides={"apgd-ce": {"num_steps": 2}, "apgd-t": {"num_steps": 2}},
  )  # fmt: skip
  lines = [line for line in report.warnings if "NaN or infinite" in line]
  assert len(lines) == said and report.robust.any()
  if lines:
    count = int(report.robust.sum())
    assert lines[1] == (
      f"apgd-t met gradients that are NaN or infinite in places on {count} of the {count} images that it left."
    )


@pytest.mark.parametrize("value", [jnp.inf, -jnp.inf])
def test_an_infinite_gradient_is_a_direction(value, keys, images, linear_logits):
  model = lambda x: linear_logits(_with_backward(lambda gradient: gradient.at[:, 0, 0].set(value))(x))
  for norm, epsilon in BALLS.items():
    labels = linear_logits(images).argmax(axis=1)
    result = registry.REGISTRY["fgsm"](keys, model, images, labels, epsilon=epsilon, norm=norm)
    assert np.isfinite(result.images).all()
    moved = np.asarray(result.images - images)[:, 0, 0, 0] * np.sign(value)
    assert (moved >= 0).all() and moved.max() > 0.5 * epsilon
