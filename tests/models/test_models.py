"""Networks: published parameter counts, float32 logits from any compute type, independent images in eval mode."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lrat_jax import models
from lrat_jax.models import networks

SMALL = [
  "cnn_4", "resnet18_4", "preact_resnet18_4", "wide_resnet_10_1", "dm_wide_resnet_10_1", "dm_preact_resnet18_4",
  "wong_preact_resnet18_4", "imagenet_resnet18_4", "ra_wide_resnet_6_2x8_1x12_1x20",
  "robust_wide_resnet_16_1x20_2x24_1x12",
]  # fmt: skip
WITH_LAYER_NORM = ["convnext_1-1_8-12_patch2", "vit_2_16_2_4"]


def _shapes(name, image_shape=(32, 32, 3), num_classes=10):
  model = models.create(name, num_classes)
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "count"),
  # Counts of the PyTorch definitions of TRADES, GAIRAT and RobustBench, for CIFAR-10.
  [
    ("resnet18", 11_173_962),
    ("preact_resnet18", 11_172_170),
    ("wide_resnet_28_10", 36_479_194),
    ("wide_resnet_34_10", 46_160_474),
    ("dm_wide_resnet_28_10", 36_479_194),
    ("dm_preact_resnet18", 12_548_426),
    ("resnet50", 23_520_842),
  ],
)
def test_parameter_counts_are_the_published_ones(name, count):
  assert sum(p.size for p in jax.tree.leaves(_shapes(name)["params"])) == count


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "count"),
  # Counts of torchvision.
  [
    ("imagenet_resnet18", 11_689_512),
    ("imagenet_resnet34", 21_797_672),
    ("imagenet_resnet50", 25_557_032),
    ("imagenet_wide_resnet50_2", 68_883_240),
  ],
)
def test_parameter_counts_on_imagenet_are_torchvisions(name, count):
  shapes = _shapes(name, (64, 64, 3), 1000)
  assert sum(p.size for p in jax.tree.leaves(shapes["params"])) == count


@pytest.mark.slow
@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("name", [*SMALL, *WITH_LAYER_NORM])
def test_logits_are_float32_and_parameters_too(name, dtype):
  model = models.create(name, 7, dtype=dtype, mean=(0.5,), std=(0.2,))
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  logits = jax.jit(model.apply)(variables, jnp.full((2, 8, 8, 3), 0.3))
  assert logits.shape == (2, 7) and logits.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  assert jnp.isfinite(logits).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, *WITH_LAYER_NORM])
def test_bfloat16_is_close_to_float32(name):
  images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
  variables = jax.jit(models.create(name, 5).init)(jax.random.key(0), images)
  exact, rough = (jax.jit(models.create(name, 5, dtype=dtype).apply)(variables, images) for dtype in models.DTYPES)
  assert jnp.max(jnp.abs(exact - rough)) < 0.05 * jnp.max(jnp.abs(exact))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, *WITH_LAYER_NORM])
def test_in_eval_mode_an_images_logits_depend_on_it_alone(name):
  images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
  model = models.create(name, 5)
  variables = jax.jit(model.init)(jax.random.key(0), images)
  alone = jax.jit(model.apply)(variables, images[2:3])
  np.testing.assert_allclose(jax.jit(model.apply)(variables, images)[2:3], alone, atol=1e-5)


@pytest.mark.slow
def test_normalisation_is_inside():
  images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
  plain, inside = models.create("cnn_4", 5), models.create("cnn_4", 5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
  variables = jax.jit(plain.init)(jax.random.key(0), images)
  normalised = (images - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.6, 0.7])
  np.testing.assert_allclose(inside.apply(variables, images), plain.apply(variables, normalised), atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_an_activation_replaces_every_other(name, monkeypatch):
  images, calls = jnp.full((1, 8, 8, 3), 0.3), []
  relu, silu = (models.create(name, 5, activation=activation) for activation in ("relu", "silu"))
  assert models.create(name, 5) == (silu if name.startswith(("dm_", "ra_")) else relu)
  for kind in ("relu", "silu"):
    monkeypatch.setitem(models.ACTIVATIONS, kind, lambda x, kind=kind: calls.append(kind) or x)
  for model in (relu, silu):
    jax.eval_shape(model.init, jax.random.key(0), images)
  half = len(calls) // 2
  assert calls == ["relu"] * half + ["silu"] * half and half >= 5
  # Squeeze and excitation in RaWRN keep their own activations.
  assert name.startswith("ra_") or "relu" not in str(jax.make_jaxpr(silu.init)(jax.random.key(0), images))


def test_activations_are_those_of_their_names():
  x = np.linspace(-4, 4, 33)
  cumulative = np.array([0.5 * (1 + math.erf(value / 2**0.5)) for value in x])
  tanh = 0.5 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
  expected = {"relu": np.maximum(x, 0), "silu": x / (1 + np.exp(-x)), "gelu": x * cumulative, "gelu_tanh": x * tanh}
  assert models.ACTIVATIONS.keys() == expected.keys()
  for name, activation in models.ACTIVATIONS.items():
    np.testing.assert_allclose(activation(jnp.asarray(x, jnp.float32)), expected[name], atol=1e-6)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"name": "vgg"}, "name='vgg' is not a model; choose from"),
    ({"name": "cnn_8_mean_sparse"}, "mean_sparse: 'cnn_8_mean_sparse' has no normalisation before its activations"),
    ({"name": "cnn", "mean_sparse": True}, "mean_sparse: 'cnn' has no normalisation before its activations"),
    ({"name": "tests.nowhere:make", "mean_sparse": True}, "mean_sparse=True is for the networks of this project"),
    ({"name": "ra_wide_resnet_28_10"}, "is not a WideResNet; choose from"),
    ({"name": "wide_resnet_16_1x2_1x2_1x2"}, "is not a WideResNet; choose from"),
    ({"name": "wide_resnet_30_10"}, r"depth of a WideResNet is 6 n \+ 4"),
    ({"num_classes": 1}, "num_classes=1 must be 2 or more"),
    ({"dtype": "float16"}, r"dtype='float16' is unknown; choose from \['float32', 'bfloat16'\]"),
    (
      {"activation": "swish"},
      r"activation='swish' is unknown; choose from \['auto', 'relu', 'silu', 'gelu', 'gelu_tanh'\]",
    ),
    ({"std": (0.0,)}, "every std above 0"),
    ({"mean": (0.1, 0.2)}, "must have the same length"),
  ],
)
def test_bad_arguments_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    models.create(**({"name": "cnn", "num_classes": 10} | arguments))


def test_the_small_network_is_attacked_on_as_many_images_as_a_core_caches():
  assert models.microbatch_size("cnn", 28, 28, platform="cpu") == 8
  assert models.microbatch_size("cnn", 32, 32, platform="cpu") == 6
  assert models.microbatch_size("cnn", 512, 512, platform="cpu") == 1
  assert models.microbatch_size("cnn", 8, 8, platform="cpu") is None  # more images would fit than a batch has
  assert models.microbatch_size("resnet18", 32, 32, platform="cpu") is None


def test_on_accelerators_all_images_are_attacked_at_once():
  assert models.microbatch_size("cnn", 28, 28, platform="gpu") is None


def test_each_image_is_standardised_by_itself_and_one_of_one_colour_has_finite_gradients():
  images = np.random.default_rng(0).uniform(size=(3, 4, 5, 3)).astype(np.float32)
  images[2] = 0.25
  found = np.asarray(networks.standardised(jnp.asarray(images)))
  for image, standard in zip(images[:2], found[:2], strict=True):
    np.testing.assert_allclose(standard, (image - image.mean()) / image.std(ddof=1), atol=1e-5)
  np.testing.assert_array_equal(found[2], 0)
  faint = 0.5 + 1e-3 * images[:1]  # its standard deviation is below the minimum
  np.testing.assert_allclose(networks.standardised(faint), (faint - faint.mean()) * 60**0.5, atol=1e-5)
  gradient = jax.grad(lambda x: jnp.sum(networks.standardised(x) ** 3))(jnp.asarray(images))
  assert jnp.isfinite(gradient).all() and jnp.abs(gradient[0]).max() > 0
  half = networks.standardised(jnp.asarray(images, jnp.bfloat16))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(jnp.float32)[:2], found[:2], atol=0.05)


@pytest.mark.parametrize(
  ("preprocessing", "expected"), [("none", 0.75), ("minus_one_to_one", 0.5), ("mean_std", 1.0), ("per_image", 0.0)]
)
def test_preprocessing_is_inside(preprocessing, expected):
  model = models.create("cnn_4", 5, mean=(0.5,), std=(0.25,), preprocessing=preprocessing)
  found = model.clone(network=_Identity()).apply({}, jnp.full((2, 8, 8, 3), 0.75))
  np.testing.assert_array_equal(found, np.float32(expected))
  assert preprocessing == "mean_std" or (model.mean, model.std) == ((0.0,), (1.0,))


class _Identity(nn.Module):
  def __call__(self, images, train):
    return images


def test_unknown_preprocessing_is_one_line():
  with pytest.raises(ValueError, match=r"preprocessing='zca' is unknown; choose from \['mean_std', 'none', "):
    models.create("cnn", 10, preprocessing="zca")
