"""Attacks on a latent of the image: properties of every kind, decoders compared with references, and the balls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from benchmarks.attack_references import latent_decoders
from lrat_jax import attacks
from lrat_jax.attacks import _colours, _jpeg, _overlays, _warps, latents
from lrat_jax.core import sharding

STRIDE = latent_decoders.STRIDE
# A weak and a strong epsilon of each kind, for an untrained network on noise.
STRENGTHS = {
  "stadv": (0.01, 0.5), "elastic": (0.05, 2.0), "recolor": (0.01, 0.5), "jpeg_linf": (0.05, 4.0),
  "jpeg_l1": (1.0, 200.0), "hsv": (0.01, 0.5), "pixel": (0.2, 5.0), "gabor": (0.01, 0.5), "fog": (0.1, 0.7),
  "glitch": (0.01, 0.5),
}  # fmt: skip


def test_every_kind_is_tested():
  assert list(STRENGTHS) == list(latents.KINDS)


@pytest.fixture(scope="module")
def coloured():
  """Images [16, 8, 8, 3]."""
  return jax.random.uniform(jax.random.key(4), (16, 8, 8, 3))


@pytest.fixture(scope="module")
def logits_fn():
  """A small network with random weights for these images, 5 classes."""
  first, second = (jax.random.normal(jax.random.key(i), shape) for i, shape in ((5, (192, 32)), (6, (32, 5))))
  return lambda images: jnp.tanh((images.reshape(len(images), -1) - 0.5) @ first) @ second


@pytest.fixture(scope="module")
def predictions(coloured, logits_fn):
  return logits_fn(coloured).argmax(axis=1)


@pytest.fixture(scope="module", params=list(latents.KINDS))
def attack(request, logits_fn):
  """An attack, compiled: (keys, images, labels, epsilon) -> AttackResult."""

  @jax.jit
  def run(keys, images, labels, epsilon):
    return attacks.unforeseen(keys, logits_fn, images, labels, kind=request.param, epsilon=epsilon, num_steps=5)

  run.kind = request.param
  return run


def test_epsilon_0_returns_the_images(attack, keys, coloured, predictions):
  result = attack(keys, coloured, predictions, 0.0)
  np.testing.assert_allclose(result.images, coloured, atol=1e-5)
  assert not result.success.any() and (result.surviving_steps == 5).all()


def test_accuracy_falls_with_strength(attack, keys, coloured, predictions):
  little, much = STRENGTHS[attack.kind]
  fallen = [int(attack(keys, coloured, predictions, epsilon).success.sum()) for epsilon in (little, much)]
  assert 0 <= fallen[0] <= fallen[1] and fallen[1] > 0


def test_images_are_in_range_and_gradients_finite(attack, keys, coloured, predictions):
  coloured = jnp.round(coloured)  # black, white and fully saturated colours, the corners of the colour cube
  result = attack(keys, coloured, predictions, STRENGTHS[attack.kind][1])
  assert jnp.isfinite(result.images).all() and jnp.min(result.images) >= 0 and jnp.max(result.images) <= 1
  assert (result.broken_gradients == 0).all() and bool((result.images != coloured).any(axis=(1, 2, 3)).all())


def test_steps_raise_the_loss_more_than_chance(attack, keys, coloured, predictions, logits_fn):
  epsilon = STRENGTHS[attack.kind][1]
  loss = lambda images: attacks.losses.cross_entropy(logits_fn(images), predictions).mean()
  chance = attacks.unforeseen(
    keys, logits_fn, coloured, predictions, kind=attack.kind, epsilon=epsilon, num_steps=0
  ).images
  assert loss(attack(keys, coloured, predictions, epsilon).images) > loss(chance)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 64])
def test_an_image_has_one_adversarial_whatever_its_batch(attack, size, keys, coloured, predictions):
  epsilon = STRENGTHS[attack.kind][1] / 4
  order = jnp.arange(3, 3 + size) % 16
  whole = attack(keys, coloured, predictions, epsilon)
  part = attack(keys[order], coloured[order], predictions[order], epsilon)
  np.testing.assert_allclose(part.images, whole.images[order], atol=1e-5)
  np.testing.assert_array_equal(part.surviving_steps, whole.surviving_steps[order])


@pytest.mark.slow
def test_devices_change_nothing(attack, keys, coloured, predictions):
  split = PartitionSpec(sharding.AXIS)
  specs = {"in_specs": (split, split, split, PartitionSpec()), "out_specs": split}
  sharded = jax.jit(jax.shard_map(attack, mesh=sharding.make_mesh(2), **specs))
  arguments = keys, coloured, predictions, jnp.float32(STRENGTHS[attack.kind][1] / 4)
  whole, parts = attack(*arguments), sharded(*arguments)
  np.testing.assert_allclose(parts.images, whole.images, atol=1e-5)
  np.testing.assert_array_equal(parts.surviving_steps, whole.surviving_steps)


def test_restarts_never_lose_what_one_run_found(keys, coloured, predictions, logits_fn):
  run = functools.partial(attacks.unforeseen, keys, logits_fn, coloured, predictions, kind="gabor", epsilon=0.05)
  one, three = (run(num_steps=2, num_restarts=count).success for count in (1, 3))
  assert (one <= three).all() and 0 < one.sum() < three.sum()


def _latent(kind, shape, seed=0, epsilon=0.0):
  """A random latent for one image, and the random draws of its decoder."""
  chosen = latents.KINDS[kind]
  key = jax.random.key(seed)
  return chosen.ball.sample(key[None], chosen.shape(shape), epsilon)[0], chosen.draw(key, shape)


@pytest.mark.parametrize("shape", [(8, 8, 1), (13, 10, 1), (28, 28, 1), (17, 32, 3)])
@pytest.mark.parametrize("kind", latents.KINDS)
def test_a_latent_of_0_is_the_image_and_has_a_gradient(kind, shape):
  image = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
  image[:4] = np.round(image[:4])  # black, white and fully saturated colours
  latent, drawn = _latent(kind, shape)
  weights = np.random.default_rng(1).normal(size=shape).astype(np.float32)

  @jax.jit
  def values(latent):
    decode = lambda latent: latents.KINDS[kind].decode(image, latent, drawn)
    return decode(latent), jax.grad(lambda latent: jnp.sum(weights * decode(latent)))(latent)

  found, gradient = values(latent)
  np.testing.assert_allclose(found, image, atol=1e-5)
  assert jnp.isfinite(gradient).all()
  away, drawn = _latent(kind, shape, epsilon=STRENGTHS[kind][1])
  found, gradient = values(away)
  assert jnp.isfinite(found).all() and jnp.isfinite(gradient).all() and jnp.any(gradient != 0)


@pytest.mark.parametrize("name", ["stadv", "elastic", "recolor", "jpeg_linf", "hsv", "pixel", "fog", "glitch"])
def test_decoders_are_those_of_the_references(name):
  image, latent = latent_decoders.decoder_inputs()[name]
  found = np.clip(latents.KINDS[name].decode(jnp.asarray(image), jnp.asarray(latent), None), 0, 1)[::STRIDE, ::STRIDE]
  # ReColorAdv's matrices to the colour space and back, with four digits each, are not exactly inverse.
  np.testing.assert_allclose(found, np.load(latent_decoders.GOLDEN)[name], atol=1e-4 if name == "recolor" else 1e-5)
  assert np.abs(found - image[::STRIDE, ::STRIDE]).max() > 0.01


def test_the_kernel_of_gabor_noise_is_that_of_the_reference():
  found = _overlays.gabor_kernel(0.5 / np.pi, 4.0, 23)[::STRIDE, ::STRIDE]
  np.testing.assert_allclose(found, np.load(latent_decoders.GOLDEN)["gabor"], atol=1e-5)


def test_colours_return_from_other_spaces():
  image = jnp.asarray(np.random.default_rng(0).uniform(size=(40, 40, 3)), jnp.float32)
  image = jnp.concatenate([image, jnp.round(image)])
  np.testing.assert_allclose(_colours.from_luv(_colours.to_luv(image)), image, atol=2e-3)
  np.testing.assert_allclose(_colours.from_hsv(_colours.to_hsv(image)), image, atol=1e-6)
  white, black = _colours.to_luv(jnp.ones(3)), _colours.to_luv(jnp.zeros(3))
  np.testing.assert_allclose(white, [1.0, 0.5, 0.5], atol=2e-3)
  np.testing.assert_allclose(black, [0.0, 0.5, 0.5], atol=1e-6)


def test_a_shift_of_all_grey_values_is_added():
  image = jnp.linspace(0, 0.8, 64).reshape(8, 8, 1)
  found = latents.KINDS["recolor"].decode(image, jnp.full((16, 1), 0.1), None)
  np.testing.assert_allclose(found, image + 0.1, atol=1e-6)


def test_a_flow_of_whole_pixels_moves_the_image():
  image = jax.random.uniform(jax.random.key(0), (8, 8, 1))
  moved = jnp.zeros_like(image).at[:-1, 2:].set(image[1:, :-2])
  pixels = jnp.stack([jnp.full((8, 8), 1.0), jnp.full((8, 8), -2.0)], axis=-1)
  np.testing.assert_allclose(latents.KINDS["elastic"].decode(image, pixels, None), moved, atol=1e-5)
  inside = np.s_[1:-2, 3:-1]  # where no position is outside the image
  found = latents.KINDS["stadv"].decode(image, pixels / 4, None)
  np.testing.assert_allclose(found[inside], moved[inside], atol=1e-5)


def test_places_have_a_gradient_beside_an_edge():
  rows, columns = jnp.meshgrid(jnp.arange(8.0), jnp.arange(8.0), indexing="ij")
  image = jnp.zeros((8, 8, 1)).at[:, 4:].set(1.0)
  summed = lambda image, rows, columns: jnp.sum(_warps.sample(image, rows, columns))
  down, right = jax.grad(summed, argnums=(1, 2))(image, rows, columns - 0.4)
  # Columns 3 and 5 are in flat parts, one pixel from the edge; column 7 is the same at the end of the image.
  np.testing.assert_allclose(right[4], [0, 0, 0, 0.3, 0.5, 0.2, 0, -0.3], atol=1e-6)
  np.testing.assert_allclose(down[1:-1], 0, atol=1e-6)
  ramp = 0.1 * columns[..., None] - 0.02 * rows[..., None]
  down, right = jax.grad(summed, argnums=(1, 2))(ramp, rows + 0.3, columns - 0.4)
  np.testing.assert_allclose(down[1:-2, 1:-1], -0.02, atol=1e-6)
  np.testing.assert_allclose(right[1:-2, 2:-1], 0.1, atol=1e-6)
  # The gradient with respect to the image is exact: half a pixel down, every row but the first counts fully.
  shares = jax.grad(summed)(image, rows + 0.5, columns)
  np.testing.assert_allclose(shares[..., 0], np.where(rows == 0, 0.5, 1.0), atol=1e-6)


def test_every_place_beside_an_edge_crosses_it(keys):
  images = jnp.zeros((16, 8, 8, 1)).at[:, :, 4:].set(1.0)
  darker = lambda images: jnp.stack([0.1 * images.sum(axis=(1, 2, 3)), jnp.zeros(len(images))], axis=1)
  labels = jnp.zeros(16, jnp.int32)
  found = attacks.unforeseen(keys, darker, images, labels, kind="stadv", epsilon=0.2)
  # Each pixel is read 0.8 pixels further left, wherever in the ball its flow started.
  np.testing.assert_allclose(found.images[:, 1:-1, 4], 0.2, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 16, 3), (20, 9, 3)])
def test_a_first_coefficient_raises_a_block_evenly(shape):
  change = _jpeg.from_coefficients(jnp.zeros(_jpeg.num_coefficients(shape)).at[0].set(1.0), shape)
  np.testing.assert_allclose(change[:8, :8], 16 / 8 / 255, atol=1e-6)
  np.testing.assert_allclose(change.at[:8, :8].set(0), 0, atol=1e-6)


@pytest.mark.parametrize("kind", latents.KINDS)
def test_latents_stay_in_their_ball(kind):
  ball, epsilon = latents.KINDS[kind].ball, STRENGTHS[kind][1]
  latent = ball.sample(jax.random.split(jax.random.key(0), 3), (6, 7), epsilon)
  for step in range(4):
    gradient = jax.random.normal(jax.random.key(step), latent.shape)
    latent = ball.advance(jnp.int32(step), latent, gradient, epsilon, epsilon)
    assert (attacks.get_norm(ball.norm).length(latent) <= epsilon * (1 + 1e-5)).all()
    assert latent.min() >= ball.low and latent.max() <= ball.high


def test_frank_wolfe_goes_to_the_best_vertex():
  ball = latents.KINDS["jpeg_l1"].ball
  gradient = jnp.array([[0.1, -3.0, 2.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
  found = ball.advance(jnp.int32(0), jnp.ones((2, 4)), gradient, 3.0, 0.0)
  np.testing.assert_array_equal(found, [[0, -2, 1, 0], [0, 0, 0, 2]])
  half_way = ball.advance(jnp.int32(1), jnp.zeros((2, 4)), gradient, 3.0, 0.0)
  np.testing.assert_array_equal(half_way, found / 2)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"kind": "wind"}, r"kind='wind' is unknown; choose from \['stadv', 'elastic'"),
    ({"epsilon": -0.1}, r"epsilon=-0.1 is outside \[0, 1e6\]"),
    ({"epsilon": 3}, r"epsilon=3 is outside \[0, 2\]"),
    ({"step_size": -1.0}, "step_size=-1 is outside"),
    ({"num_steps": 1.5}, "num_steps=1.5 must be an integer"),
    ({"loss": "mse"}, "loss='mse' is unknown; choose from"),
    ({"kind": "jpeg_l1", "step_size": 0.1}, "step_size is not an argument of kind='jpeg_l1'"),
    ({"kind": "hsv", "images": jnp.zeros((16, 8, 4, 2))}, "kind='hsv' takes images of 1 or 3 channels, not 2"),
  ],
)
def test_bad_arguments_are_named(change, message, keys, images, labels, linear_logits):
  arguments = {"key": keys, "logits_fn": linear_logits, "images": images, "labels": labels}
  arguments |= {"kind": "stadv", "epsilon": 0.1, "num_steps": 1} | change
  with pytest.raises(ValueError, match=message):
    attacks.unforeseen(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize("kind", latents.KINDS)
def test_a_small_network_falls_on_grey_images(kind, keys, images, cnn_logits):
  labels = cnn_logits(images).argmax(axis=1)
  run = jax.jit(lambda epsilon: attacks.unforeseen(keys, cnn_logits, images, labels, kind=kind, epsilon=epsilon))
  assert not run(0.0).success.any() and run(STRENGTHS[kind][1]).success.any()
