"""Properties of attacks that do not use PGD's loop: the ball, the range, and one result per image and key."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lrat_jax import attacks
from lrat_jax.attacks import threat_model
from lrat_jax.core import sharding

SUITE = {
  "fab": functools.partial(attacks.fab, epsilon=0.1, num_steps=5, target_rank=1),
  "fab_l2": functools.partial(attacks.fab, epsilon=0.6, norm="l2", num_steps=5, target_rank=2),
  "fab_untargeted": functools.partial(attacks.fab, epsilon=0.1, num_steps=3, num_restarts=2),
  "square": functools.partial(attacks.square, epsilon=0.1, num_queries=15),
  "square_l2": functools.partial(attacks.square, epsilon=0.6, norm="l2", num_queries=15),
  "carlini_wagner": functools.partial(
    attacks.carlini_wagner, epsilon=0.8, binary_search_steps=2, num_steps=10, learning_rate=0.1, initial_const=1.0
  ),
  "ddn": functools.partial(attacks.ddn, epsilon=0.8, num_steps=8, gamma=0.2),
  "fmn_l0": functools.partial(attacks.fmn, epsilon=20, norm="l0", num_steps=8),
  "fmn_l1": functools.partial(attacks.fmn, epsilon=4.0, norm="l1", num_steps=8, gamma_init=0.2),
  "fmn_l2": functools.partial(attacks.fmn, epsilon=0.8, norm="l2", num_steps=8, gamma_init=0.2),
  "fmn_linf": functools.partial(attacks.fmn, epsilon=0.1, num_steps=8, gamma_init=0.2),
  "deepfool": functools.partial(attacks.deepfool, epsilon=0.8, num_steps=4, candidates=3),
  "deepfool_linf": functools.partial(attacks.deepfool, epsilon=0.1, norm="linf", num_steps=4),
  "ead": functools.partial(attacks.ead, epsilon=4.0, binary_search_steps=2, num_steps=10, initial_const=1.0),
  "hop_skip_jump": functools.partial(attacks.hop_skip_jump, epsilon=1.5, num_steps=2, initial_num_evals=20),
  "hop_skip_jump_linf": functools.partial(
    attacks.hop_skip_jump, epsilon=0.5, norm="linf", num_steps=2, initial_num_evals=20
  ),
  "spsa": functools.partial(attacks.spsa, epsilon=0.1, num_steps=3, num_samples=8, learning_rate=0.05),
  "spatial": functools.partial(attacks.spatial, num_rotations=2, num_translations=2),
}


@pytest.fixture(scope="module")
def right_labels(cnn_logits, images):
  """The model's predictions as labels, so that there is something to attack; wrong for every fourth image."""
  answers = cnn_logits(images).argmax(axis=1)
  return jnp.where(jnp.arange(16) % 4 == 3, (answers + 1) % 5, answers)


@pytest.fixture(scope="module", params=sorted(SUITE))
def attack(request, cnn_logits):
  """An attack on the small network, compiled: (keys, images, labels) -> AttackResult."""
  partial = SUITE[request.param]

  @jax.jit
  def run(keys, images, labels):
    return partial(keys, cnn_logits, images, labels)

  run.name, run.epsilon = request.param, partial.keywords.get("epsilon", math.inf)
  parameters = inspect.signature(partial.func).parameters
  run.norm = partial.keywords.get("norm", parameters["norm"].default if "norm" in parameters else "linf")
  return run


MINIMISING = ("carlini_wagner", "ddn", "deepfool", "ead", "fab", "fmn", "hop_skip_jump")


def test_distances_are_those_of_the_images(attack, keys, images, right_labels, cnn_logits):
  result = attack(keys, images, right_labels)
  if not attack.name.startswith(MINIMISING):
    assert result.distances is None
    return
  lengths = threat_model.length_of(attack.norm)(result.images - images)
  np.testing.assert_allclose(result.distances, jnp.where(result.success, lengths, jnp.inf), rtol=1e-4, atol=1e-6)
  wrong = cnn_logits(images).argmax(axis=1) != right_labels
  assert (result.distances[wrong] == 0).all() and (result.distances[~wrong] > 0).all()


def test_results_are_in_the_ball_and_in_range(attack, keys, images, right_labels):
  adversarial = attack(keys, images, right_labels).images
  length = threat_model.length_of(attack.norm)(adversarial - images)
  assert jnp.max(length) <= attack.epsilon + 1e-6
  assert jnp.min(adversarial) >= 0 and jnp.max(adversarial) <= 1


def test_some_images_fall_and_misclassified_ones_are_left_alone(attack, keys, images, right_labels, cnn_logits):
  adversarial = attack(keys, images, right_labels).images
  wrong = cnn_logits(images).argmax(axis=1) != right_labels
  fooled = cnn_logits(adversarial).argmax(axis=1) != right_labels
  np.testing.assert_array_equal(adversarial[wrong], images[wrong])
  assert fooled[wrong].all() and fooled[~wrong].any()


@pytest.mark.slow
def test_an_image_has_one_adversarial_whatever_its_batch(attack, keys, images, right_labels):
  whole = attack(keys, images, right_labels)
  order = jax.random.permutation(jax.random.key(5), 16)[:5]
  part = attack(keys[order], images[order], right_labels[order])
  np.testing.assert_allclose(part.images, whole.images[order], atol=1e-5)
  np.testing.assert_array_equal(part.surviving_steps, whole.surviving_steps[order])


@pytest.mark.slow
def test_devices_change_nothing(attack, keys, images, right_labels):
  mesh = sharding.make_mesh(2)
  specs = {"in_specs": PartitionSpec(sharding.AXIS), "out_specs": PartitionSpec(sharding.AXIS)}
  sharded = jax.jit(jax.shard_map(attack, mesh=mesh, **specs))(keys, images, right_labels)
  whole = attack(keys, images, right_labels)
  np.testing.assert_allclose(sharded.images, whole.images, atol=1e-5)
  np.testing.assert_array_equal(sharded.surviving_steps, whole.surviving_steps)


def test_surviving_steps_are_counted(attack, keys, images, right_labels, cnn_logits):
  survived = attack(keys, images, right_labels).surviving_steps
  right = cnn_logits(images).argmax(axis=1) == right_labels
  assert survived.shape == (16,) and survived.dtype == jnp.int32
  assert (survived[~right] == 0).all() and survived[right].max() > 0


@pytest.mark.slow
def test_no_gradient_flows_through_an_attack(attack, keys, images, right_labels):
  gradient = jax.grad(lambda x: attack(keys, x, right_labels).images.sum())(images)
  np.testing.assert_array_equal(gradient, 0.0)


def test_success_is_that_the_model_is_wrong_on_what_came_back(attack, keys, images, right_labels, cnn_logits):
  result = attack(keys, images, right_labels)
  assert result.success.dtype == bool
  np.testing.assert_array_equal(result.success, cnn_logits(result.images).argmax(axis=1) != right_labels)
