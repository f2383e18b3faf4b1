"""FAB: the closed-form distance on linear models, its choice of target, and what it returns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import attacks
from lrat_jax.attacks import _boundaries, threat_model


@pytest.fixture(scope="module")
def grey():
  """Images [16, 8, 8, 1] far from 0 and 1, so that these bounds are not reached."""
  return jnp.full((16, 8, 8, 1), 0.5)


def _distances(weights, images, labels):
  """Linf and l2 distances [batch, classes] from the images to the boundary with each class; 0 for the label."""
  logits = np.asarray(images).reshape(len(images), -1) @ weights
  gaps = logits[np.arange(len(labels)), labels][:, None] - logits
  normals = weights.T[:, None] - weights.T[labels]  # [classes, batch, 64]
  with np.errstate(invalid="ignore"):
    return (
      gaps / np.abs(normals).sum(axis=-1).T,
      gaps / np.sqrt((normals**2).sum(axis=-1)).T,
    )


def _fooled(logits_fn, result, labels):
  return np.asarray(logits_fn(result.images).argmax(axis=1) != labels)


@pytest.mark.parametrize(("norm", "which"), [("linf", 0), ("l2", 1)])
@pytest.mark.parametrize("target_rank", [1, None])
def test_images_fall_from_the_closed_form_distance_on(
  norm, which, target_rank, grey, keys, linear_weights, linear_logits
):
  labels = linear_logits(grey).argmax(axis=1)
  distances = _distances(linear_weights, grey, labels)[which][0]
  order = np.asarray(linear_logits(grey)[0]).argsort()[::-1]
  least = distances[order[1]] if target_rank else np.delete(distances, order[0]).min()
  nearest = np.delete(distances, order[0]).min()
  run = functools.partial(attacks.fab, keys, linear_logits, grey, labels, norm=norm, target_rank=target_rank)
  below, above = run(epsilon=0.99 * nearest), run(epsilon=1.06 * least)
  assert not _fooled(linear_logits, below, labels).any()
  np.testing.assert_array_equal(below.images, grey)
  assert (below.surviving_steps > 0).all()
  assert _fooled(linear_logits, above, labels).all()


def test_a_rank_and_targets_name_the_same_classes(keys, images, linear_logits):
  logits = linear_logits(images)
  labels = logits.argmax(axis=1)
  run = functools.partial(attacks.fab, keys, linear_logits, images, labels, epsilon=0.2, num_steps=5)
  targets = jnp.argsort(logits, axis=1)[:, -2]
  by_rank, by_class = run(target_rank=1).images, run(targets=targets).images
  same = linear_logits(by_rank).argmax(axis=1) == targets  # with a rank, any wrong class is a success
  np.testing.assert_array_equal(by_rank[same], by_class[same])
  assert same.sum() > 8


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_classes_are_looked_at_in_blocks(monkeypatch, norm, keys, images, cnn_logits):
  labels = cnn_logits(images).argmax(axis=1)
  epsilon = {"linf": 0.3, "l2": 2.0, "l1": 10.0}[norm]
  run = functools.partial(attacks.fab, keys, cnn_logits, images, labels, epsilon=epsilon, norm=norm)
  whole = run(num_steps=3)
  monkeypatch.setattr(_boundaries, "_CLASSES_AT_ONCE", 2)  # of five, so that the last block is not full
  np.testing.assert_allclose(run(num_steps=3).images, whole.images, atol=2e-6)


def test_memory_does_not_grow_with_the_number_of_classes(keys, labels):
  pixels = jnp.full((16, 32, 32, 1), 0.5)

  def needed(num_classes):
    model = lambda x: x.reshape(16, 1024) @ jnp.ones((1024, num_classes))
    attack = lambda x: attacks.fab(keys, model, x, labels, epsilon=0.1).images
    return jax.jit(attack).lower(pixels).compile().memory_analysis().temp_size_in_bytes

  assert needed(1000) - needed(20) < 200 * pixels.nbytes  # it would be 980 times the images if all gradients were kept


def test_two_classes_do(keys, images, linear_logits):
  logits_fn = lambda x: linear_logits(x)[:, :2]
  labels = logits_fn(images).argmax(axis=1)
  for target_rank in (1, None):
    result = attacks.fab(keys, logits_fn, images, labels, epsilon=0.3, num_steps=10, target_rank=target_rank)
    assert _fooled(logits_fn, result, labels).all()


def test_restarts_begin_half_way_out_and_lose_nothing(keys, images, cnn_logits):
  labels = cnn_logits(images).argmax(axis=1)
  run = functools.partial(attacks.fab, keys, cnn_logits, images, labels, epsilon=0.03, num_steps=1, target_rank=1)
  once, often = (_fooled(cnn_logits, jax.jit(functools.partial(run, num_restarts=n))(), labels) for n in (1, 8))
  assert (often >= once).all() and often.sum() > once.sum()


def test_no_steps_leave_the_images(keys, images, labels, linear_logits):
  result = attacks.fab(keys, linear_logits, images, labels, epsilon=0.3, num_steps=0, target_rank=1)
  np.testing.assert_array_equal(result.images, images)
  np.testing.assert_array_equal(result.surviving_steps, 0)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"target_rank": 0}, "target_rank=0 must be an integer from 1"),
    ({"target_rank": 5}, r"target_rank=5 is outside \[1, 4\] for 5 classes"),
    ({"target_rank": 1, "targets": (jnp.arange(16) + 1) % 5}, "pass targets or target_rank=1, not both"),
    ({"targets": jnp.zeros(3, int)}, r"targets must be integers of shape \(16,\)"),
    ({"num_steps": -1}, "num_steps=-1 must be an integer from 0"),
    ({"alpha_max": float("nan")}, r"alpha_max=nan is not a number"),
    ({"backward": 1.5}, r"backward=1.5 is outside \[0, 1\]"),
    ({"overshoot": 0.5}, r"overshoot=0.5 is outside \[1, 10\]"),
    ({"epsilon": 2.0}, r"epsilon=2 is outside \[0, 1\]"),
    ({"norm": "l7"}, "norm='l7' is unknown; choose from"),
  ],
)
def test_bad_arguments_are_named(change, message, keys, images, labels, linear_logits):
  with pytest.raises(ValueError, match=message):
    attacks.fab(keys, linear_logits, images, labels, **({"epsilon": 0.1} | change))


def test_points_are_drawn_back_to_the_models_side(grey, keys, linear_weights, linear_logits):
  # 0.9 * 1.05 of the distance to a flat boundary is before the boundary, so the model is right at each gradient.
  labels = linear_logits(grey).argmax(axis=1)
  nearest = _distances(linear_weights, grey, labels)[1][0]
  epsilon = 0.9 * np.delete(nearest, labels[0]).min()
  result = attacks.fab(keys, linear_logits, grey, labels, norm="l2", epsilon=epsilon, num_steps=10, target_rank=1)
  np.testing.assert_array_equal(result.surviving_steps, 10)


@pytest.mark.parametrize(("norm", "which"), [("linf", 0), ("l2", 1)])
def test_without_a_radius_it_comes_to_the_closed_form_distance(norm, which, grey, keys, linear_weights, linear_logits):
  labels = linear_logits(grey).argmax(axis=1)
  nearest = np.delete(_distances(linear_weights, grey, labels)[which][0], labels[0]).min()
  for options in ({}, {"epsilon": 2 * nearest, "shorten": True}):
    result = attacks.fab(keys, linear_logits, grey, labels, norm=norm, num_steps=30, **options)
    distances = threat_model.get_norm(norm).length(result.images - grey)
    assert result.success.all() and (distances >= nearest * 0.9999).all() and (distances < 1.06 * nearest).all()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_steps_and_restarts_shorten(norm, keys, images, cnn_logits):
  """The attack finds an adversarial, then shorter ones; with a radius below the shortest one, it fails."""
  labels = cnn_logits(images).argmax(axis=1)
  length = threat_model.get_norm(norm).length
  widest = threat_model.get_norm(norm).diameter(images.shape[1:])
  run = functools.partial(attacks.fab, keys, cnn_logits, images, labels, norm=norm)

  def distances(**options):
    result = jax.jit(functools.partial(run, **options))()
    return np.asarray(jnp.where(result.success, length(result.images - images), widest))

  first, few, many = distances(epsilon=widest), distances(num_steps=10), distances(num_steps=40)
  few = 1.0001 * few  # each is compiled separately and rounds differently
  often = distances(num_steps=10, num_restarts=3)
  assert (many <= few).all() and (many / first).mean() < 0.95
  assert (often <= few).all() and often.sum() < few.sum()
  assert (distances(epsilon=0.9 * many.min(), shorten=True, num_steps=40) == widest).all()
