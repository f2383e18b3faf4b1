"""Corruptions: compared with SciPy, scikit-image's formulas and Pillow, noise of the stated size, common properties.

Comparisons with the code that made CIFAR-10-C are in test_corruptions_reference.py.
"""

import colorsys
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from PIL import Image
from scipy import ndimage

from lrat_jax import attacks
from lrat_jax.attacks.corruptions import CORRUPTIONS
from lrat_jax.core import sharding


@pytest.fixture(scope="module")
def photos():
  """Smooth colour images [2, 20, 20, 3] with values k / 255 for integers k; the size is not a multiple of 8."""
  noise = np.random.default_rng(0).normal(size=(2, 20, 20, 3))
  smooth = ndimage.gaussian_filter(noise, (0, 3, 3, 0))
  levels = np.round(255 * (smooth - smooth.min()) / (smooth.max() - smooth.min()))
  return jnp.array(levels / 255, jnp.float32)


def _corrupt(images, kind, severity, key=0):
  labels = jnp.zeros(len(images), int)
  logits_fn = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), -jnp.ones(len(x))], axis=1)
  run = functools.partial(attacks.corruption, jax.random.key(key), logits_fn, kind=kind, severity=severity)
  return jax.jit(run)(images=images, labels=labels)


# Corruptions that change images less at severity 5 than at 1, or that need colours.
NOT_STRONGER = ("elastic_transform", "saturate")
DRAWN = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur", "snow", "frost")
DRAWN += ("fog", "elastic_transform", "spatter")


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(3, 11, 12, 1), (3, 13, 11, 3)])
def test_corrupted_images_are_images(kind, shape):
  if kind == "saturate" and shape[-1] == 1:
    return
  images = jax.random.uniform(jax.random.key(0), shape)
  mild, strong = (_corrupt(images, kind, severity) for severity in (1, 5))
  for result in (mild, strong):
    assert result.images.shape == shape and result.images.min() >= 0 and result.images.max() <= 1
    np.testing.assert_array_equal(result.surviving_steps, 1)
  changes = [jnp.abs(result.images - images).mean() for result in (mild, strong)]
  assert min(changes) > 0 and (kind in NOT_STRONGER or changes[0] < changes[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(2, 1, 1, 3), (2, 2, 5, 3), (2, 3, 3, 3), (2, 8, 8, 3), (2, 28, 28, 3)])
def test_every_size_works_or_is_refused(kind, shape):
  images = jax.random.uniform(jax.random.key(0), shape)
  if kind == "elastic_transform" and min(shape[1:3]) < 3:
    with pytest.raises(ValueError, match=r"kind='elastic_transform' needs images of at least 3 x 3 pixels, not \d x"):
      _corrupt(images, kind, 3)
    return
  corrupted = np.asarray(_corrupt(images, kind, 3).images)
  assert corrupted.shape == shape and np.isfinite(corrupted).all()


@pytest.mark.parametrize("severity", [1, 5])
def test_blur_equals_scipys(severity, photos):
  deviation = {1: 0.4, 5: 1.0}[severity]
  expected = ndimage.gaussian_filter(np.asarray(photos), (0, deviation, deviation, 0), mode="nearest")
  np.testing.assert_allclose(_corrupt(photos, "gaussian_blur", severity).images, expected, atol=1e-5)


def test_brightness_raises_the_value_in_hsv(photos):
  pixels = np.asarray(photos).reshape(-1, 3)
  hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in pixels]
  expected = np.array([colorsys.hsv_to_rgb(h, s, min(v + 0.3, 1)) for h, s, v in hsv]).reshape(photos.shape)
  np.testing.assert_allclose(_corrupt(photos, "brightness", 5).images, expected, atol=1e-5)
  np.testing.assert_allclose(_corrupt(jnp.zeros((1, 2, 2, 1)), "brightness", 5).images, 0.3, atol=1e-6)


def test_contrast_keeps_the_means(photos):
  result = _corrupt(photos, "contrast", 5).images
  means = photos.mean(axis=(1, 2), keepdims=True)
  np.testing.assert_allclose(result, means + 0.15 * (photos - means), atol=1e-5)


def _through_pillow(images, change):
  levels = np.round(255 * np.asarray(images)).astype(np.uint8)
  squeeze = levels[..., 0] if levels.shape[-1] == 1 else levels
  return np.stack([np.asarray(change(Image.fromarray(image))) for image in squeeze]).reshape(images.shape) / 255


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_pixelate_equals_pillows(severity, photos):
  small = int(20 * (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1])
  resize = lambda image: image.resize((small, small), Image.BOX).resize((20, 20), Image.BOX)
  np.testing.assert_allclose(
    _corrupt(photos, "pixelate", severity).images, _through_pillow(photos, resize), atol=1.2 / 255
  )


def _pillow_jpeg(quality, image):
  file = io.BytesIO()
  image.save(file, "JPEG", quality=quality)
  return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize(("severity", "quality"), [(1, 80), (4, 50), (5, 40)])
def test_jpeg_of_grey_images_equals_pillows(severity, quality, photos):
  grey = photos[..., :1]
  expected = _through_pillow(grey, functools.partial(_pillow_jpeg, quality))
  difference = np.abs(np.asarray(_corrupt(grey, "jpeg_compression", severity).images) - expected)
  # libjpeg's transform uses integers: a coefficient half-way between two steps may be rounded the other way.
  assert (difference > 1.2 / 255).mean() < 0.05 and difference.max() < 6 / 255


@pytest.mark.parametrize(("severity", "quality"), [(1, 80), (5, 40)])
def test_jpeg_of_colour_images_is_close_to_pillows(severity, quality, photos):
  expected = _through_pillow(photos, functools.partial(_pillow_jpeg, quality))
  difference = np.abs(np.asarray(_corrupt(photos, "jpeg_compression", severity).images) - expected)
  assert difference.mean() < 1.8 / 255 and difference.max() < 12 / 255


def test_noise_has_the_stated_size():
  grey = jnp.full((4, 50, 50, 1), 0.5)
  noise = np.asarray(_corrupt(grey, "gaussian_noise", 5).images) - 0.5
  assert abs(noise.std() - 0.1) < 0.003 and abs(noise.mean()) < 0.004
  impulses = np.asarray(_corrupt(grey, "impulse_noise", 5).images)
  for value in (0.0, 1.0):
    assert abs((impulses == value).mean() - 0.035) < 0.006
  assert ((impulses == 0.5) | (impulses == 0) | (impulses == 1)).all()


def test_shot_noise_counts():
  """Results are whole counts divided by the rate, with mean x and variance x / rate."""
  for value, rate, severity in ((0.5, 50, 5), (0.2, 500, 1)):
    counts = rate * np.asarray(_corrupt(jnp.full((4, 50, 50, 1), value), "shot_noise", severity).images)
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
    assert abs(counts.mean() / rate - value) < 0.003 and abs(counts.var() / (value * rate) - 1) < 0.05


def test_speckle_noise_is_in_proportion():
  for value in (0.2, 0.4):
    noise = np.asarray(_corrupt(jnp.full((4, 50, 50, 1), value), "speckle_noise", 5).images) - value
    assert abs(noise.std() / value - 0.2) < 0.005 and abs(noise.mean()) < 0.002


def test_saturation_in_hsv(photos):
  pixels = np.asarray(photos).reshape(-1, 3)
  hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in pixels]
  expected = np.array([colorsys.hsv_to_rgb(h, min(2.5 * s + 0.2, 1), v) for h, s, v in hsv]).reshape(photos.shape)
  np.testing.assert_allclose(_corrupt(photos, "saturate", 5).images, expected, atol=1e-5)
  grey = _corrupt(jnp.full((1, 2, 2, 3), 0.5), "saturate", 5).images[0, 0, 0]
  np.testing.assert_allclose(grey, colorsys.hsv_to_rgb(0, 0.2, 0.5), atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 16, 16, 1), (40, 16, 12, 3)])
def test_frost_has_the_photographs_mean_and_deviation(shape):
  """On black images the result is the texture itself, times 0.45 at severity 5."""
  texture = np.asarray(_corrupt(jnp.zeros(shape), "frost", 5).images) / 0.45
  colour = (0.56, 0.65, 0.69) if shape[-1] == 3 else np.mean((0.56, 0.65, 0.69))
  np.testing.assert_allclose(texture.mean(axis=(0, 1, 2)), colour, atol=2e-3)
  np.testing.assert_allclose(texture.std(axis=(1, 2)), 0.09, atol=5e-3)
  assert np.abs(texture[0] - texture[1]).mean() > 0.05


# Compiling frost's texture takes five seconds.
@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k == "frost" else k for k in DRAWN])
def test_a_corruption_depends_on_the_images_own_key(kind, photos):
  logits_fn = lambda x: x[:, 0, 0, :]
  keys = jax.random.split(jax.random.key(3), 2)
  run = lambda order: attacks.corruption(
    keys[order], logits_fn, photos[order], jnp.zeros(len(order), int), kind=kind, severity=5
  )
  whole = run(np.array([0, 1])).images
  np.testing.assert_allclose(run(np.array([1])).images[0], whole[1], atol=1e-6)
  same = attacks.corruption(keys, logits_fn, photos[:1].repeat(2, 0), jnp.zeros(2, int), kind=kind, severity=5).images
  assert jnp.abs(same[0] - same[1]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_batches_and_devices_change_nothing(kind):
  images = jax.random.uniform(jax.random.key(0), (64, 8, 8, 3))
  keys, labels = jax.random.split(jax.random.key(1), 64), jnp.zeros(64, int)
  run = lambda keys, images, labels: (
    attacks.corruption(keys, lambda x: x[:, 0, 0, :], images, labels, kind=kind, severity=4).images
  )
  whole = jax.jit(run)(keys, images, labels)
  for size in (1, 7):
    np.testing.assert_allclose(jax.jit(run)(keys[:size], images[:size], labels[:size]), whole[:size], atol=1e-5)
  spec = PartitionSpec(sharding.AXIS)
  sharded = jax.shard_map(run, mesh=sharding.make_mesh(2), in_specs=spec, out_specs=spec)
  np.testing.assert_allclose(jax.jit(sharded)(keys, images, labels), whole, atol=1e-5)


@pytest.mark.parametrize("kind", ["shot_noise", "glass_blur"])
def test_every_kind_of_key_serves(kind, photos):
  key = jax.random.key(0, impl="rbg")
  result = attacks.corruption(key, lambda x: x[:, 0, 0, :], photos, jnp.zeros(2, int), kind=kind, severity=5)
  assert jnp.abs(result.images - photos).max() > 0


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"kind": "rain"}, "kind='rain' is unknown; choose from"),
    ({"kind": "saturate"}, "kind='saturate' needs colours: three channels, not 1"),
    ({"severity": 6}, r"severity=6 is outside 1\.\.5"),
    ({"severity": 0}, r"severity=0 must be an integer from 1"),
    ({"severity": 2.5}, r"severity=2\.5 must be an integer"),
  ],
)
def test_bad_arguments_are_named(change, message, keys, images, labels, linear_logits):
  with pytest.raises(ValueError, match=message):
    attacks.corruption(keys, linear_logits, images, labels, **({"kind": "jpeg_compression", "severity": 1} | change))
