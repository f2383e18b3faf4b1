"""Corruptions: against SciPy, scikit-image's formulas and Pillow, and noise of the stated size."""

import colorsys
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lrat_jax import attacks
from lrat_jax.attacks.corruptions import CORRUPTIONS


@pytest.fixture(scope="module")
def photos():
  """Smooth colour images [2, 20, 20, 3] of whole levels / 255, no multiple of 8 in size."""
  noise = np.random.default_rng(0).normal(size=(2, 20, 20, 3))
  smooth = ndimage.gaussian_filter(noise, (0, 3, 3, 0))
  levels = np.round(255 * (smooth - smooth.min()) / (smooth.max() - smooth.min()))
  return jnp.array(levels / 255, jnp.float32)


def _corrupt(images, kind, severity, key=0):
  labels = jnp.zeros(len(images), int)
  logits_fn = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), -jnp.ones(len(x))], axis=1)
  run = functools.partial(attacks.corruption, jax.random.key(key), logits_fn, kind=kind, severity=severity)
  return jax.jit(run)(images=images, labels=labels)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(3, 7, 10, 1), (3, 9, 8, 3)])
def test_corrupted_images_are_images(kind, shape):
  images = jax.random.uniform(jax.random.key(0), shape)
  mild, strong = (_corrupt(images, kind, severity) for severity in (1, 5))
  for result in (mild, strong):
    assert result.images.shape == shape and result.images.min() >= 0 and result.images.max() <= 1
    np.testing.assert_array_equal(result.surviving_steps, 1)
  assert 0 < jnp.abs(mild.images - images).mean() < jnp.abs(strong.images - images).mean()


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
  difference = np.abs(np.asarray(_corrupt(grey, "jpeg", severity).images) - expected)
  # libjpeg's transform works on integers: a coefficient half-way between two steps may go the other way.
  assert (difference > 1.2 / 255).mean() < 0.05 and difference.max() < 6 / 255


@pytest.mark.parametrize(("severity", "quality"), [(1, 80), (5, 40)])
def test_jpeg_of_colour_images_is_close_to_pillows(severity, quality, photos):
  expected = _through_pillow(photos, functools.partial(_pillow_jpeg, quality))
  difference = np.abs(np.asarray(_corrupt(photos, "jpeg", severity).images) - expected)
  assert difference.mean() < 1.8 / 255 and difference.max() < 12 / 255


def test_noise_has_the_stated_size():
  grey = jnp.full((4, 50, 50, 1), 0.5)
  noise = np.asarray(_corrupt(grey, "gaussian_noise", 5).images) - 0.5
  assert abs(noise.std() - 0.1) < 0.003 and abs(noise.mean()) < 0.004
  impulses = np.asarray(_corrupt(grey, "impulse_noise", 5).images)
  for value in (0.0, 1.0):
    assert abs((impulses == value).mean() - 0.035) < 0.006
  assert ((impulses == 0.5) | (impulses == 0) | (impulses == 1)).all()


@pytest.mark.parametrize("kind", ["gaussian_noise", "impulse_noise"])
def test_noise_depends_on_the_images_own_key(kind, photos):
  logits_fn = lambda x: x[:, 0, 0, :]
  keys = jax.random.split(jax.random.key(3), 2)
  run = lambda order: attacks.corruption(
    keys[order], logits_fn, photos[order], jnp.zeros(len(order), int), kind=kind, severity=5
  )
  np.testing.assert_array_equal(run(np.array([1])).images[0], run(np.array([0, 1])).images[1])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"kind": "snow"}, "kind='snow' is unknown; choose from"),
    ({"severity": 0}, r"severity=0 must be an integer of 1 or more"),
    ({"severity": 2.5}, r"severity=2\.5 must be an integer"),
  ],
)
def test_bad_arguments_are_named(change, message, keys, images, labels, linear_logits):
  with pytest.raises(ValueError, match=message):
    attacks.corruption(keys, linear_logits, images, labels, **({"kind": "jpeg", "severity": 1} | change))
