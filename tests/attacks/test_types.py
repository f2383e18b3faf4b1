"""Any float type of images and any kind of scalar: arithmetic in float32 or wider, results in the images' type."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrat_jax
from lrat_jax import attacks
from lrat_jax.attacks import registry
from tests.helpers import features

# Numbers that float32 represents exactly, so that they are equal in every scalar type.
BALLS = {"linf": 0.125, "l2": 0.5, "l1": 3.0}
IN_A_BALL = {
  "fgsm": {},
  "pgd": {"step_size": 0.0625, "num_steps": 2, "num_restarts": 2},
  "cw": {"step_size": 0.0625, "num_steps": 2},
  "apgd": {"num_steps": 4},
  "fab": {"num_steps": 2, "num_restarts": 2},
  "square": {"num_queries": 3},
}
OTHERS = {
  "carlini_wagner": {"epsilon": 0.5, "binary_search_steps": 2, "num_steps": 3, "learning_rate": 0.1},
  "msd": {
    "radii": {"linf": 0.125, "l2": 0.5, "l1": 3.0},
    "step_sizes": {"linf": 0.0625, "l2": 0.25, "l1": 1.0},
    "num_steps": 2,
  },
  "ddn": {"epsilon": 0.5, "num_steps": 3},
  **{f"fmn {norm}": {"epsilon": epsilon, "norm": norm, "num_steps": 3} for norm, epsilon in BALLS.items()},
  "fmn l0": {"epsilon": 8, "norm": "l0", "num_steps": 3},
  **{f"deepfool {norm}": {"epsilon": BALLS[norm], "norm": norm, "num_steps": 2} for norm in ("linf", "l2")},
  "ead": {"epsilon": 3.0, "binary_search_steps": 2, "num_steps": 3},
  **{
    f"hop_skip_jump {norm}": {"epsilon": BALLS[norm], "norm": norm, "num_steps": 1, "initial_num_evals": 5}
    for norm in ("linf", "l2")
  },
  "spsa": {"epsilon": 0.125, "num_steps": 2, "num_samples": 3},
  "spatial": {"num_rotations": 2, "num_translations": 2},
  "lpips": {"epsilon": 0.25, "features_fn": features, "num_steps": 2, "num_rounds": 2},
  **{f"unforeseen {kind}": {"kind": kind, "epsilon": 0.125, "num_steps": 2} for kind in attacks.latents.KINDS},
  **{f"corruption {kind}": {"kind": kind, "severity": 3} for kind in attacks.corruptions.STANDARD},
}
SUITE = OTHERS | {
  f"{name} {norm}": IN_A_BALL[name] | {"norm": norm, "epsilon": BALLS[norm]} for name in IN_A_BALL for norm in BALLS
}
# One narrower and one wider than the float32 of all other tests; float16 is handled like bfloat16.
TYPES = ("bfloat16", "float64")
SCALARS = (np.float32, np.float64, jnp.asarray)


@pytest.fixture(scope="module", params=list(SUITE))
def name(request):
  """The name of an attack. Programs are cleared after each: all would exceed a process's 65,530 memory maps."""
  yield request.param
  jax.clear_caches()


def _logits(weights, images):
  """A linear model that accepts only images of the type of its weights."""
  assert images.dtype == weights.dtype
  return images.reshape(len(images), -1) @ weights


def _without_addresses(program):
  return re.sub("0x[0-9a-f]+", "", str(program))


def _case(name, dtype, scalar=float):
  """(attack: images -> AttackResult, images), with a model and images of type `dtype`."""
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.uniform(size=(4, 6, 6, 1)), dtype)
  logits_fn = functools.partial(_logits, jnp.asarray(rng.normal(size=(36, 3)), dtype))
  labels = logits_fn(images).argmax(axis=1)
  arguments = {key: scalar(value) if key in ("epsilon", "step_size") else value for key, value in SUITE[name].items()}
  attack = functools.partial(registry.REGISTRY[name.split()[0]], **arguments)
  return lambda images: attack(jax.random.key(0), logits_fn, images, labels), images


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES)
def test_images_come_back_in_their_type(name, dtype):
  _check_type(name, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pgd linf", "apgd l2", "fab l1", "square l2", "carlini_wagner"], indirect=True)
def test_float16_comes_back_too(name):
  _check_type(name, "float16")


def _check_type(name, dtype):
  with jax.enable_x64(dtype == "float64"):
    attack, images = _case(name, dtype)
    result = attack(images)
  assert result.images.dtype == images.dtype == dtype and result.success.dtype == bool
  assert result.surviving_steps.dtype == jnp.int32
  found = np.asarray(result.images, np.float64)
  assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1
  if "norm" in SUITE[name]:
    delta = np.abs(found - np.asarray(images, np.float64)).reshape(4, -1)
    length = {"linf": delta.max(1), "l2": np.sqrt((delta**2).sum(1)), "l1": delta.sum(1), "l0": (delta > 0).sum(1)}[
      SUITE[name]["norm"]
    ]
    assert length.max() <= SUITE[name]["epsilon"] + 1e-7 * delta.shape[1]  # rounding of float32


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", [name for name in SUITE if "epsilon" in SUITE[name]], indirect=True)
def test_every_kind_of_scalar_makes_the_program_of_a_python_number(name, dtype):
  with jax.enable_x64(True):
    attack, images = _case(name, dtype)
    program = jax.make_jaxpr(attack)(images)
    for scalar in SCALARS:
      attack, _ = _case(name, dtype, scalar)
      found = jax.make_jaxpr(attack)(images)
      assert found.out_avals[0].dtype == dtype
      assert _without_addresses(found) == _without_addresses(program)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "x64"), [("bfloat16", False), ("float64", True), ("float32", True)])
def test_autoattack_and_the_benchmark_take_every_type(dtype, x64):
  with jax.enable_x64(x64):
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(36, 4)))  # float64 if x64 is enabled: logits may be wider than images
    model = lambda images: _logits(weights.astype(images.dtype), images) * weights[0, 0] ** 2
    images = np.asarray(rng.uniform(size=(8, 6, 6, 1)), jnp.dtype(dtype))
    labels = np.asarray(model(jnp.asarray(images)).argmax(axis=1))
    options = {"epsilon": 0.05, "chunk_size": 8, "overrides": {"square": {"num_queries": 5}}}
    report = attacks.autoattack(jax.random.key(0), model, images, labels, **options)
    result = lrat_jax.benchmark(model, images, labels, epsilon=np.float64(0.05), version="apgd", num_sanity_examples=4)
  assert np.abs(report.images.astype(np.float64) - images).max() <= 0.05 * (1 + 1e-5)
  for found in (report, result):
    assert found.images.dtype == images.dtype and found.clean_accuracy == 1.0
    assert found.robust_accuracy < 1


@pytest.mark.parametrize("attacked_by", ["pgd linf", "apgd l2"])
def test_the_arithmetic_is_that_of_float32(attacked_by):
  """16-bit images are converted to float32: with a float32 model, only the last rounding differs."""
  weights = np.random.default_rng(0).normal(size=(36, 3)).astype(np.float32)
  logits_fn = lambda images: images.astype(jnp.float32).reshape(len(images), -1) @ weights
  images = jnp.asarray(np.random.default_rng(1).uniform(size=(4, 6, 6, 1)), jnp.float16)
  labels = logits_fn(images).argmax(axis=1)
  attack = functools.partial(registry.REGISTRY[attacked_by.split()[0]], **SUITE[attacked_by])
  narrow, wide = (
    attack(jax.random.key(0), logits_fn, images.astype(dtype), labels).images for dtype in (jnp.float16, jnp.float32)
  )
  np.testing.assert_allclose(narrow, wide, atol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_success_is_that_of_the_rounded_images(dtype):
  """The attack's point is nearest to a number outside the ball, so it is rounded back to the image."""
  spacing = float(jnp.finfo(dtype).eps) / 2  # of the numbers from 0.5 to 1
  logits_fn = lambda images: jnp.stack(
    [jnp.zeros(len(images)), jnp.mean(images.astype(jnp.float32), axis=(1, 2, 3)) - 0.75 - spacing / 2], axis=1
  )
  images = jnp.full((2, 6, 6, 1), 0.75, dtype)
  result = attacks.pgd(
    jax.random.key(0), logits_fn, images, jnp.zeros(2, int),
    epsilon=0.75 * spacing, step_size=spacing, num_steps=1, random_start="none",
  )  # fmt: skip
  np.testing.assert_array_equal(result.images, images)
  assert not result.success.any()
