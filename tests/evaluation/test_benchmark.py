"""`benchmark`: the results of `attacks.autoattack` in a table, and a one-line error for each wrong argument."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrat_jax
from lrat_jax import attacks, models
from lrat_jax.convert import exchange

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def labels(linear_logits, images):
  """The model's own predictions, wrong for every fourth image."""
  predictions = np.asarray(linear_logits(images).argmax(axis=1))
  return np.where(np.arange(16) % 4 == 3, (predictions + 1) % 5, predictions)


@pytest.fixture(scope="module")
def result(linear_logits, images, labels):
  return lrat_jax.benchmark(linear_logits, images, labels, threat_model="Linf", epsilon=0.02, version="apgd")


def test_it_is_what_autoattack_says(result, linear_logits, images, labels):
  report = attacks.autoattack(jax.random.key(0), linear_logits, images, labels, epsilon=0.02, version="apgd")
  np.testing.assert_array_equal(result.robust, report.robust)
  np.testing.assert_array_equal(result.images, report.images)
  assert result.clean_accuracy == 0.75 and result.robust_accuracy == report.robust.mean() < 0.75
  assert result.attacks == ("clean", "apgd-ce", "apgd-t") and result.threat_model == "linf"
  fooled = np.asarray(linear_logits(result.images).argmax(axis=1)) != labels
  np.testing.assert_array_equal(fooled, ~result.robust)


def test_the_text_names_two_attacks_an_upper_bound(result):
  lines = str(result).splitlines()
  assert lines[0] == ("APGD-CE + APGD-T, an upper bound on AutoAttack's robust accuracy, linf, epsilon 0.02, 16 images")
  assert lines[2].split() == ["clean", "75.00%"] and lines[3].split()[:3] == [
    "apgd-ce",
    f"{100 * result.per_attack[0].robust_accuracy:.2f}%",
    "12",
  ]
  assert f"robust{100 * result.robust_accuracy:16.2f}%" in str(result)
  assert any(line.startswith("warning: ") and "upper bound" in line for line in lines)


def test_bytes_are_the_same_images(linear_logits, labels):
  images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8)
  options = {"epsilon": 0.02, "version": "apgd", "num_sanity_examples": 0}
  by_bytes = lrat_jax.benchmark(linear_logits, images, labels, **options)
  by_floats = lrat_jax.benchmark(linear_logits, images / np.float32(255), labels, **options)
  np.testing.assert_array_equal(by_bytes.images, by_floats.images)


def test_a_model_that_answers_by_chance_is_warned_of(images, labels):
  """The sanity checks run on the first images, and num_sanity_examples=0 turns them off."""
  calls = []

  def moody(x):  # the bias changes at every call outside jit
    calls.append(0)
    return jnp.stack([jnp.mean(x, axis=(1, 2, 3)), jnp.full(len(x), 0.1 * len(calls))] * 3, axis=1)

  options = {"epsilon": 0.02, "version": "apgd"}
  lines = lrat_jax.benchmark(moody, images, labels, **options).warnings
  assert any("two predictions to an image differ" in line for line in lines)
  lines = lrat_jax.benchmark(moody, images, labels, num_sanity_examples=0, **options).warnings
  assert not any("two predictions to an image differ" in line for line in lines)


@pytest.mark.slow
def test_gradients_that_are_not_finite_are_warned_of(images, labels, linear_logits):
  broken = lambda x: linear_logits(x) + jnp.sqrt(0.0 * x).sum(axis=(1, 2, 3))[:, None]  # 0, with gradient NaN
  lines = lrat_jax.benchmark(broken, images, labels, epsilon=0.02, version="apgd").warnings
  assert any(line.startswith("100 % of the gradients are NaN") for line in lines)


def _with_gradient(change):
  """The identity, with its gradient changed by `change`."""
  identity = jax.custom_vjp(lambda x: x)
  identity.defvjp(lambda x: (x, None), lambda _, gradient: (change(gradient),))
  return identity


# (before the model, after it): almost unchanged predictions, but gradients that are hidden, weakened or false.
MASKS = {
  "none": (lambda x: x, lambda z: z),
  "large": (lambda x: x, lambda z: 1e4 * z),
  "probabilities": (lambda x: x, lambda z: jax.nn.softmax(10 * z)),
  "cut": (lambda x: x, lambda z: jnp.clip(z, -3, 3) + 1e-3 * z),
  "moved": (lambda x: x, lambda z: z + 1e3 * jnp.cos(z.sum(axis=1, keepdims=True))),
  "rounded logits": (lambda x: x, lambda z: jnp.round(20 * z) / 20),
  "zero": (_with_gradient(lambda g: 0 * g), lambda z: z),
  "NaN in places": (_with_gradient(lambda g: g.at[:, ::4].set(jnp.nan)), lambda z: z),
  "turned round": (_with_gradient(lambda g: -g), lambda z: z),
  "shattered": (_with_gradient(lambda g: jnp.sin(1e4 * g)), lambda z: z),
}


@pytest.mark.slow
def test_no_all_clear_stands_beside_a_number_that_is_too_high(linear_logits):
  """If APGD-CE + APGD-T leave over 3 points more than AutoAttack does without the mask, a warning gives a reason."""
  images = np.random.default_rng(1).uniform(size=(40, 8, 8, 1)).astype(np.float32)
  labels = np.asarray(linear_logits(images).argmax(axis=1))
  truth = lrat_jax.benchmark(linear_logits, images, labels, epsilon=0.03).robust_accuracy
  gaps, reasons = {}, {}
  for name, (before, after) in MASKS.items():
    model = lambda x, before=before, after=after: after(linear_logits(before(x)))
    result = lrat_jax.benchmark(model, images, np.asarray(model(images).argmax(axis=1)), epsilon=0.03, version="apgd")
    gaps[name] = result.robust_accuracy - truth
    reasons[name] = [line for line in result.warnings if "without FAB-T and Square" not in line]
  assert not reasons["none"] and sum(gap > 0.1 for gap in gaps.values()) >= 5
  assert not [name for name, gap in gaps.items() if gap > 0.03 and not reasons[name]]


def test_load_model_gives_what_was_saved(tmp_path):
  module = models.create("cnn_2", num_classes=4)
  images = np.random.default_rng(0).uniform(0, 1, (3, 8, 8, 1)).astype(np.float32)
  variables = module.init(jax.random.key(0), images)
  exchange.save(tmp_path / "a.safetensors", module, variables)
  model = lrat_jax.load_model(tmp_path / "a.safetensors")
  np.testing.assert_allclose(model.logits_fn(images), module.apply(variables, images), atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, model.variables["params"], variables["params"])
  assert isinstance(model.module, models.Classifier)


def _column(x):
  return jnp.mean(x, axis=(1, 2, 3))[:, None]


def _nan_on_the_last(x):
  logits = jnp.tile(jnp.mean(x, axis=(1, 2, 3))[:, None], (1, 5)) + jnp.arange(5)
  return jnp.where(x[:, :1, 0, 0] == _images()[-1, 0, 0, 0], jnp.nan, logits)


def _images():
  return jax.random.uniform(jax.random.key(1), (16, 8, 8, 1))  # as the fixture `images`


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"threat_model": "L3"}, r"threat_model='L3' is unknown; choose from \['l1', 'l2', 'linf'\]"),
    ({"version": "quick"}, r"version='quick' is unknown; choose from \['standard', 'plus', 'apgd'\]"),
    ({"threat_model": ["linf"]}, r"threat_model=\['linf'\] is unknown; choose from"),
    ({"version": ["apgd"]}, r"version=\['apgd'\] is unknown; choose from"),
    ({"batch_size": 0}, "batch_size=0 must be an integer from 1"),
    ({"epsilon": 2.0}, r"epsilon=2 is outside \[0, 1\]"),
    ({"images": np.full((16, 8, 8, 1), 2.0)}, r"images must be in \[0, 1\], but are in \[2, 2\]"),
    ({"images": np.zeros((16, 8, 8, 1), np.int32)}, "images must be uint8, or float"),
    ({"images": np.zeros((16, 8, 8))}, "images must be uint8, or float"),
    ({"labels": np.zeros(3, int)}, r"labels must be integers of shape \(16,\)"),
    ({"labels": np.full(16, 5)}, r"labels\[0\]=5 is not a class: logits_fn returns 5 classes, 0 to 4"),
    ({"labels": np.full(16, -1)}, r"labels\[0\]=-1 is not a class: logits_fn returns 5 classes"),
    ({"logits_fn": _column}, r"logits_fn returns float32 of shape \(1, 1\) for a batch of 1"),
    ({"num_sanity_examples": -1}, "num_sanity_examples=-1 must be an integer from 0"),
    ({"logits_fn": _nan_on_the_last}, r"logits_fn returns invalid logits for image 15 \(1 in all\): they are NaN"),
    ({"logits_fn": lambda x: (x, x)}, "logits_fn returns tuple; it must return an array of logits"),
  ],
)
def test_a_wrong_argument_is_one_line(changes, said, linear_logits, images, labels):
  arguments = {"logits_fn": linear_logits, "images": images, "labels": labels} | changes
  with pytest.raises(ValueError, match=said) as raised:
    lrat_jax.benchmark(**arguments)
  assert "\n" not in str(raised.value)


def test_the_package_imports_nothing_until_a_name_is_used():
  code = "import sys, lrat_jax; print(sorted(m for m in ('jax', 'numpy', 'flax') if m in sys.modules), dir(lrat_jax))"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert done.stdout.strip() == f"[] {sorted(lrat_jax.__all__)}"
  with pytest.raises(AttributeError, match="no attribute 'attack'"):
    _ = lrat_jax.attack
