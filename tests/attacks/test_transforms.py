"""Gradient transforms: compared with Python loops and SciPy's convolutions, per image, by name; transfer attacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from jax.sharding import PartitionSpec

from lrat_jax import attacks
from lrat_jax.attacks import losses, transforms
from lrat_jax.core import sharding

EPSILON, STEP, STEPS = 0.1, 0.03, 6
ATTACK = functools.partial(attacks.pgd, epsilon=EPSILON, step_size=STEP, num_steps=STEPS, random_start="none")
NAMES = sorted(transforms.TRANSFORMS)


def _loop(logits_fn, images, labels, decay, ahead=0.0, kernel=None):
  """MI-FGSM as a loop in Python, with the look-ahead of NI-FGSM and the kernel of TI-FGSM."""
  slope = jax.grad(lambda x: losses.cross_entropy(logits_fn(x), labels).sum())
  points, total = np.asarray(images), np.zeros_like(images)
  for _ in range(STEPS):
    gradient = np.asarray(slope(jnp.asarray(points + STEP * ahead * total)))
    if kernel is not None:
      gradient = scipy.ndimage.convolve(gradient, kernel[None, :, :, None], mode="constant")
    total = decay * total + gradient / np.abs(gradient).mean(axis=(1, 2, 3), keepdims=True)
    points = np.clip(points + STEP * np.sign(total), images - EPSILON, images + EPSILON).clip(0, 1)
  return points


def _gaussian(size, radius):
  weights = scipy.stats.norm.pdf(np.linspace(-radius, radius, size))
  return np.outer(weights, weights) / weights.sum() ** 2


@pytest.mark.parametrize(
  ("transform", "reference"),
  [
    ("momentum", {"decay": 1.0}),
    (transforms.momentum(0.5), {"decay": 0.5}),
    ("nesterov", {"decay": 1.0, "ahead": 1.0}),
    (transforms.nesterov(0.5), {"decay": 0.5, "ahead": 0.5}),
    ("translation", {"decay": 0.0, "kernel": _gaussian(15, 3.0)}),
    (
      transforms.chain(transforms.translation(5, 2.0), transforms.momentum()),
      {"decay": 1.0, "kernel": _gaussian(5, 2.0)},
    ),
  ],
)
def test_it_is_the_papers_loop(transform, reference, keys, images, labels, cnn_logits):
  found = ATTACK(keys, cnn_logits, images, labels, gradient_transform=transform).images
  expected = _loop(cnn_logits, images, labels, **reference)
  assert np.mean(np.abs(found - expected) < 1e-6) > 0.995  # a sign may flip where a gradient is 0 up to rounding
  plain = ATTACK(keys, cnn_logits, images, labels).images
  assert np.mean(np.abs(plain - expected) < 1e-6) < 0.98


def _shrunk(image, size, row, column):
  """The image interpolated bilinearly to `size` x `size` pixels at (row, column), with zeros around it."""
  place = np.clip((np.arange(size) + 0.5) * len(image) / size - 0.5, 0, len(image) - 1)
  low = np.minimum(place.astype(int), len(image) - 2)
  weights = np.zeros((size, len(image)))
  weights[np.arange(size), low], weights[np.arange(size), low + 1] = 1 - (place - low), place - low
  result = np.zeros_like(image)
  result[row : row + size, column : column + size] = np.einsum("ih,jw,hwc->ijc", weights, weights, image)
  return result


def test_diverse_inputs_are_the_image_at_every_smaller_size_and_place(images):
  image = np.asarray(images[0])
  draw = transforms.diversity(probability=0.7, resize_rate=0.7).inputs
  keys = jax.random.split(jax.random.key(0), 400)
  found = np.asarray(jax.jit(lambda keys: draw(keys, jnp.tile(images[:1], (400, 1, 1, 1)), (), 0.1))(keys))
  places = [(size, row, column) for size in (5, 6, 7) for row in range(9 - size) for column in range(9 - size)]
  possible = np.stack([image, *(_shrunk(image, *place) for place in places)])
  distances = np.abs(found[:, None] - possible[None]).max(axis=(2, 3, 4))
  assert distances.min(axis=1).max() < 1e-5
  chosen = np.bincount(distances.argmin(axis=1), minlength=len(possible))
  assert (chosen > 0).all() and abs(chosen[0] / 400 - 0.3) < 0.08
  sizes = [chosen[1:17].sum(), chosen[17:26].sum(), chosen[26:].sum()]
  assert min(sizes) > 60  # of about 280 images of three sizes


@pytest.mark.parametrize("names", [*NAMES, tuple(NAMES)])
def test_an_image_has_one_result_whatever_its_batch_and_device(names, keys, images, labels, cnn_logits):
  run = jax.jit(
    lambda *batch: ATTACK(batch[0], cnn_logits, *batch[1:], gradient_transform=names)._replace(success=None)
  )
  whole = run(keys, images, labels)
  part = run(keys[3:8], images[3:8], labels[3:8])
  np.testing.assert_allclose(part.images, whole.images[3:8], atol=1e-5)
  np.testing.assert_array_equal(part.surviving_steps, whole.surviving_steps[3:8])
  if names != "momentum":  # for the others, one more compiled program is enough
    return
  specs = {"in_specs": PartitionSpec(sharding.AXIS), "out_specs": PartitionSpec(sharding.AXIS)}
  sharded = jax.jit(jax.shard_map(run, mesh=sharding.make_mesh(2), **specs))(keys, images, labels)
  np.testing.assert_allclose(sharded.images, whole.images, atol=1e-5)


def test_no_transform_is_none_to_the_bit(keys, images, labels, cnn_logits):
  run = lambda transform: jax.jit(lambda x: ATTACK(keys, cnn_logits, x, labels, gradient_transform=transform))(images)
  for transform in ((), transforms.chain(), transforms.IDENTITY):
    np.testing.assert_array_equal(run(transform).images, run(None).images)


def test_names_from_a_configuration_are_the_chain_in_their_order(keys, images, labels, cnn_logits):
  entry = {"name": "cw", "epsilon": EPSILON, "step_size": STEP, "num_steps": 3, "random_start": "none"}
  attack = attacks.from_config(entry | {"gradient_transform": ["diversity", "translation", "momentum"]})
  made = transforms.chain(transforms.diversity(), transforms.translation(), transforms.momentum())
  direct = attacks.from_config(entry)(keys, cnn_logits, images, labels, gradient_transform=made)
  np.testing.assert_array_equal(attack(keys, cnn_logits, images, labels).images, direct.images)


def test_points_and_gradients_go_through_a_chain_in_its_order(keys, images):
  twice = transforms.IDENTITY._replace(
    inputs=lambda keys, points, state, step_size: 2 * points, update=lambda gradient, state: (2 * gradient, state)
  )
  plus_1 = transforms.IDENTITY._replace(
    inputs=lambda keys, points, state, step_size: points + 1, update=lambda gradient, state: (gradient + 1, state)
  )
  chained = transforms.chain(twice, plus_1)
  state = chained.init(images)
  np.testing.assert_array_equal(chained.inputs(keys, images, state, 0.0), 2 * images + 1)
  np.testing.assert_array_equal(chained.update(images, state)[0], 2 * images + 1)


def test_draws_differ_from_step_to_step_and_between_parts_of_a_chain(images):
  seen = []
  watch = transforms.IDENTITY._replace(
    inputs=lambda keys, points, *_: (
      jax.debug.callback(lambda k: seen.append(k.tobytes()), jax.random.key_data(keys)) or points
    )
  )
  ATTACK(
    jax.random.key(0), lambda x: x.reshape(16, -1)[:, :3], images, jnp.zeros(16, int),
    gradient_transform=transforms.chain(watch, watch),
  )  # fmt: skip
  jax.effects_barrier()
  assert len(set(seen)) == 2 * STEPS


def test_momentum_survives_a_gradient_of_zero(keys, images, labels):
  result = ATTACK(keys, lambda x: jnp.zeros((16, 5)) + 0 * x.sum(), images, labels, gradient_transform="momentum")
  np.testing.assert_array_equal(result.images, images)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (
      lambda: transforms.get_transform("momentun"),
      r"gradient_transform='momentun' is unknown; choose from \['momentum'",
    ),
    (lambda: transforms.get_transform(("momentum", 3)), "gradient_transform=3 is unknown"),
    (lambda: transforms.get_transform(0.9), "gradient_transform=0.9 is unknown"),
    (lambda: transforms.momentum(-1), r"decay=-1 is outside \[0, 10\]"),
    (lambda: transforms.diversity(1.5), r"probability=1.5 is outside \[0, 1\]"),
    (lambda: transforms.diversity(resize_rate=0.0), r"resize_rate=0 is outside \[0.1, 1\]"),
    (lambda: transforms.translation(4), "kernel_size=4 must be odd"),
    (lambda: transforms.translation(0), "kernel_size=0 must be an integer from 1"),
    (lambda: transforms.translation(3, 0.0), r"radius=0 is outside \(0, 10\]"),
  ],
)
def test_what_is_wrong_is_one_line(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_an_attack_is_made_on_the_surrogate_and_evaluated_on_the_model(keys, images, cnn_logits, linear_logits):
  asked = []

  def model(x):
    asked.append(x.shape)
    return linear_logits(x)

  labels = linear_logits(images).argmax(axis=1)
  on_surrogate = ATTACK(keys, cnn_logits, images, labels)
  result = attacks.transfer(ATTACK, cnn_logits)(keys, model, images, labels)
  for field in ("images", "surviving_steps", "broken_gradients"):
    np.testing.assert_array_equal(getattr(result, field), getattr(on_surrogate, field))
  fooled = linear_logits(result.images).argmax(axis=1) != labels
  np.testing.assert_array_equal(result.success, fooled)
  assert (fooled != on_surrogate.success).any() and len(asked) <= 2  # one of them is the check of the clean images


def test_a_targeted_attack_transfers_where_the_model_predicts_the_target(keys, images, cnn_logits, linear_logits):
  targets = linear_logits(images).argmax(axis=1)
  labels = (targets + 1) % 5
  bound = attacks.transfer(functools.partial(ATTACK, targets=targets), cnn_logits)
  called = functools.partial(attacks.transfer(ATTACK, cnn_logits), targets=targets)
  for attack in (bound, called):
    result = attack(keys, linear_logits, images, labels)
    np.testing.assert_array_equal(result.success, linear_logits(result.images).argmax(axis=1) == targets)
