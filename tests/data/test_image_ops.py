"""Each operation, compared with Pillow's, on images with one channel and with three."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from lrat_jax.data import image_ops as ops


def _pictures(channels):
  """Pictures uint8 [13, 17, c]: noise, a dark ramp, few levels, one level, and a smooth one."""
  generator = np.random.default_rng(0)
  noise = generator.integers(0, 256, (13, 17, channels))
  ramp = np.broadcast_to(np.arange(17)[None, :, None] * 5 + 20, noise.shape) + np.arange(channels) * 10
  few = generator.choice([7, 90, 91, 200], noise.shape)
  waves = 127 + 120 * np.sin(np.arange(13)[:, None, None] / 3 + np.arange(17)[None, :, None] / 4 + np.arange(channels))
  return [x.astype(np.uint8) for x in (noise, ramp, few, np.full_like(noise, 77), waves)]


def _enhance(kind):
  return lambda image, strength: getattr(ImageEnhance, kind)(image).enhance(strength)


def _affine(image, matrix):
  return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=0)


def _about(middle, slope, along):
  return (1, slope, -slope * middle, 0, 1, 0) if along == "x" else (1, 0, 0, slope, 1, -slope * middle)


# name -> (ours, Pillow's, strengths)
MIDDLE_X = functools.partial(ops.shear_x, about_middle=True)
MIDDLE_Y = functools.partial(ops.shear_y, about_middle=True)
FACTORS = (0.0, 0.1, 0.37, 1.0, 1.45, 1.9)
SLOPES = (-0.3, -0.12, 0.0, 0.05, 0.3)
CASES = {
  "brightness": (ops.brightness, _enhance("Brightness"), FACTORS),
  "color": (ops.color, _enhance("Color"), FACTORS),
  "contrast": (ops.contrast, _enhance("Contrast"), FACTORS),
  "sharpness": (ops.sharpness, _enhance("Sharpness"), FACTORS),
  "posterize": (ops.posterize, ImageOps.posterize, (4, 5, 7, 8)),
  "solarize": (ops.solarize, ImageOps.solarize, (0.0, 76.5, 128.0, 255.0)),
  "equalize": (lambda image, _: ops.equalize(image), lambda image, _: ImageOps.equalize(image), (0,)),
  "shear_x": (ops.shear_x, lambda image, s: _affine(image, _about(0, s, "x")), SLOPES),
  "shear_y": (ops.shear_y, lambda image, s: _affine(image, _about(0, s, "y")), SLOPES),
  "shear_x_middle": (MIDDLE_X, lambda image, s: _affine(image, _about(image.height / 2, s, "x")), SLOPES),
  "shear_y_middle": (MIDDLE_Y, lambda image, s: _affine(image, _about(image.width / 2, s, "y")), SLOPES),
  "translate_x": (ops.translate_x, lambda image, n: _affine(image, (1, 0, -n, 0, 1, 0)), (-4.0, 0.0, 3.0, 20.0)),
  "translate_y": (ops.translate_y, lambda image, n: _affine(image, (1, 0, 0, 0, 1, -n)), (-4.0, 0.0, 3.0)),
  "rotate": (
    ops.rotate,
    lambda image, degrees: image.rotate(degrees, fillcolor=0),
    (-30.0, -7.0, 0.0, 1.0, 10.0, 29.0),
  ),
}


def _pillow(picture, operation, strength):
  image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
  return np.asarray(operation(image, strength)).reshape(picture.shape)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_an_operation_is_pillows(name, channels):
  ours, pillows, strengths = CASES[name]
  run = jax.jit(jax.vmap(ours, in_axes=(0, None)))
  pictures = _pictures(channels)
  for strength in strengths:
    found = np.asarray(run(np.stack(pictures) / np.float32(255), strength)) * 255
    np.testing.assert_allclose(found, np.round(found), atol=1e-4)
    expected = np.stack([_pillow(picture, pillows, strength) for picture in pictures])
    np.testing.assert_array_equal(np.round(found), expected, err_msg=f"{name} {strength}")


@pytest.mark.parametrize("channels", [1, 3])
def test_autocontrast_is_pillows_but_for_its_rounding(channels):
  for picture in _pictures(channels):
    found = np.round(np.asarray(jax.jit(ops.autocontrast)(picture / np.float32(255))) * 255)
    expected = _pillow(picture, lambda image, _: ImageOps.autocontrast(image), 0)
    assert (found - expected >= 0).all() and (found - expected <= 1).all()
    low, high = (picture.reshape(-1, channels).astype(int).min(axis=0), picture.reshape(-1, channels).max(axis=0))
    if (high > low).all():
      np.testing.assert_array_equal(found, (picture.astype(int) - low) * 255 // (high.astype(int) - low))
    else:
      np.testing.assert_array_equal(found, picture)


def test_a_turn_by_a_right_angle_is_exact():
  square = _pictures(3)[0][:, :13]
  found = np.asarray(ops.rotate(square / np.float32(255), 90.0)) * 255
  np.testing.assert_array_equal(np.round(found), np.rot90(square))
