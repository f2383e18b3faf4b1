"""Convolutions have the values and gradients of the plain layer, and no unnecessary computation."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from lrat_jax import attacks, models
from lrat_jax.convolutions import cache, winograd
from lrat_jax.convolutions.conv2d import conv2d
from lrat_jax.core import sharding


def _plain(x, kernel, strides, padding):
  return lax.conv_general_dilated(
    x, kernel, strides, [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _assert_equal_in_values_and_gradients(ours, plain, x, kernel, value_atol, relative_gradient_atol):
  cotangent = jax.random.normal(jax.random.key(2), jax.eval_shape(plain, x, kernel).shape)

  @functools.partial(jax.jit, static_argnums=0)
  def both(function, x, kernel, cotangent):
    out, pull = jax.vjp(function, x, kernel)
    return out, pull(cotangent)

  (out, gradients), (expected, expected_gradients) = (both(f, x, kernel, cotangent) for f in (ours, plain))
  np.testing.assert_allclose(out, expected, atol=value_atol)
  for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
    largest = float(jnp.abs(expected_gradient).max())
    np.testing.assert_allclose(gradient, expected_gradient, atol=relative_gradient_atol * largest)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("size", "strides", "kernel_size", "padding"),
  [
    (size, strides, *kernel)
    for size, strides in ((5, (1, 1)), (8, (2, 2)), (8, (3, 2)))
    for kernel in ((3, 1), (1, 0), (3, 0), (5, 2))
  ]
  + [(5, (2, 2), 3, 1), (2, (1, 1), 3, 1), (2, (2, 2), 3, 1), (1, (3, 2), 3, 1), (3, (1, 1), 5, 2)]
  + [(1, (1, 1), 3, 1), (1, (1, 1), 5, 2), (2, (2, 2), 5, 2), (2, (3, 1), 3, 2), (2, (1, 1), 2, 0)],  # one matmul
)
def test_values_and_gradients_equal_the_plain_layers(size, kernel_size, padding, strides):
  x = jax.random.normal(jax.random.key(0), (2, size, size + 1, 3))
  kernel = jax.random.normal(jax.random.key(1), (kernel_size, kernel_size, 3, 4))
  ours = lambda x, k: conv2d(x, k, strides, ((padding, padding),) * 2)
  plain = lambda x, k: _plain(x, k, strides, padding)
  _assert_equal_in_values_and_gradients(ours, plain, x, kernel, 1e-4, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(2, 3), (4, 4), (5, 8), (7, 14), (16, 9)])
def test_winograds_values_and_gradients_equal_the_plain_layers(size):
  x = jax.random.normal(jax.random.key(0), (2, *size, 32))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 32, 40)) / 17  # outputs of about 1
  plain = lambda x, k: _plain(x, k, (1, 1), 1)
  _assert_equal_in_values_and_gradients(winograd.conv3x3, plain, x, kernel, 3e-4, 3e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "stride"), [(32, 1), (2, 2)])
def test_a_few_images_at_a_time_are_as_good_as_all(monkeypatch, channels, stride):
  x = jax.random.normal(jax.random.key(0), (6, 8, 8, channels))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, 32)) / 17
  ours = lambda x, k: conv2d(x, k, (stride, stride))
  gradient_text = lambda: jax.jit(jax.grad(lambda x: ours(x, kernel).sum())).lower(x).as_text()
  assert "while" not in gradient_text()
  monkeypatch.setattr(cache, "_CACHED", 4 * 36 * 32 * 2 if stride == 1 else 16 * 9 * 2 * 2)  # two images fit
  assert "while" in gradient_text() and f"tensor<3x2x8x8x{channels}xf32>" in gradient_text()
  _assert_equal_in_values_and_gradients(ours, lambda x, k: _plain(x, k, (stride, stride), 1), x, kernel, 3e-4, 3e-5)


@pytest.mark.parametrize(
  ("count", "per_image", "at_a_time"),
  [(12, 10, 4), (7, 20, 1), (7, 10, 7), (12, 99, 1), (3, 1, 3)],  # (7, 10, 7): 5 would fit, but 7 is prime: all at once
)
def test_as_many_images_at_a_time_as_divide_all_and_fit(monkeypatch, count, per_image, at_a_time):
  monkeypatch.setattr(cache, "_CACHED", 50)
  monkeypatch.setattr(cache, "_LARGEST_KERNEL", 6)
  images, sizes = jnp.arange(count), []

  def function(part):
    sizes.append(len(part))
    return part + 1

  found = cache.microbatch(function, [images], per_image, (2, 3))
  np.testing.assert_array_equal(found.ravel(), images + 1)
  assert found.shape == (count // at_a_time, at_a_time) and set(sizes) == {at_a_time}
  assert cache.microbatch(function, [images], per_image, (7,)).shape == (1, count)  # the kernel alone fills the cache


def test_layers_of_many_channels_go_through_winograd():
  x, kernel = jnp.zeros((1, 16, 16, 32)), jnp.zeros((3, 3, 32, 32))
  text = jax.jit(conv2d).lower(x, kernel).as_text()
  assert "convolution" not in text and "tensor<36x16x32xf32>" in text  # 36 products for 16 outputs instead of 144


@pytest.mark.parametrize(
  ("size", "stride", "channels", "products"),
  [
    (1, 1, 256, [(256, 256)]),
    (2, 1, 4, [(16, 16)]),
    (2, 2, 256, [(1024, 256)]),
    (2, 1, 128, []),  # its matrix would be almost twice the kernel, which is large
    (3, 1, 4, []),
  ],
)
def test_over_a_few_pixels_a_convolution_is_one_matrix_product(size, stride, channels, products):
  x, kernel = jnp.zeros((2, size, size, channels)), jnp.zeros((3, 3, channels, channels))
  text = jax.jit(functools.partial(conv2d, strides=(stride, stride))).lower(x, kernel).as_text()
  found = re.findall(r"stablehlo\.dot_general.*tensor<2x\d+xf32>, tensor<(\d+)x(\d+)xf32>", text)
  assert [tuple(map(int, sizes)) for sizes in found] == products


@pytest.mark.parametrize(("size", "plain"), [(2, False), (3, True)])
def test_images_smaller_than_the_kernel_go_through_a_matrix_product(size, plain):
  text = jax.jit(conv2d).lower(jnp.zeros((2, size, 5, 4)), jnp.zeros((3, 3, 4, 6))).as_text()
  assert ("convolution" in text) == plain


@pytest.mark.parametrize(("name", "convolutions"), [("cnn_4", 4), ("resnet18_4", 20), ("wide_resnet_10_1", 9)])
def test_on_accelerators_the_attack_takes_no_parameter_gradient(name, convolutions):
  model, images = models.create(name, 5), jnp.zeros((2, 8, 8, 3))
  variables = jax.eval_shape(model.init, jax.random.key(0), images)

  def attack(variables, images):
    logits_fn = functools.partial(model.apply, variables)
    return attacks.pgd(
      jax.random.key(0), logits_fn, images, jnp.zeros(2, jnp.int32), epsilon=0.1, step_size=0.1, num_steps=3
    )

  text = jax.jit(attack).trace(variables, images).lower(lowering_platforms=("tpu",)).as_text()
  # For each, a forward pass and an input gradient in the only loop, and the final forward pass that checks success.
  assert text.count("stablehlo.convolution") == 3 * convolutions


def test_on_cpu_the_compiled_input_gradient_holds_no_kernel_gradient():
  x, kernel, cotangent = jnp.zeros((2, 8, 8, 32)), jnp.zeros((3, 3, 32, 32)), jnp.zeros((2, 8, 8, 32))
  of_x = jax.jit(lambda x, kernel, g: jax.vjp(lambda x: conv2d(x, kernel), x)[1](g))
  of_both = jax.jit(lambda x, kernel, g: jax.vjp(conv2d, x, kernel)[1](g))
  flops = [f.lower(x, kernel, cotangent).compile().cost_analysis()["flops"] for f in (of_x, of_both)]
  assert flops[0] < 0.7 * flops[1]


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 32])  # by taps, and by Winograd's method
def test_the_kernels_gradient_is_summed_over_devices(channels):
  x = jax.random.normal(jax.random.key(0), (4, 5, 5, channels))
  kernel = jnp.ones((3, 3, channels, 32)) / 100
  loss = lambda k, x: jnp.sum(conv2d(x, k, (1, 1), ((1, 1), (1, 1))) ** 2)
  per_device = jax.shard_map(
    lambda k, x: jax.grad(loss)(k, x), mesh=sharding.make_mesh(2), in_specs=(P(), P(sharding.AXIS)), out_specs=P()
  )
  np.testing.assert_allclose(jax.jit(per_device)(kernel, x), jax.grad(loss)(kernel, x), rtol=1e-3, atol=1e-3)
