"""The attack on several norms at once: closed forms on a linear model, its steps in NumPy, the union of balls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lrat_jax import attacks
from lrat_jax.attacks import losses, threat_model
from lrat_jax.core import sharding
from tests.attacks.test_broken_gradients import BROKEN, ROWS, ZERO

EPSILONS = {"linf": 0.05, "l2": 0.36, "l1": 1.0}
STEP_SIZES = {"linf": 0.02, "l2": 0.1, "l1": 0.4}
MSD = functools.partial(attacks.msd, radii=EPSILONS, step_sizes=STEP_SIZES, num_steps=5)


def _lengths(delta):
  """The length of each perturbation in each norm, in units of the norm's radius."""
  return {norm: threat_model.get_norm(norm).length(delta) / EPSILONS[norm] for norm in EPSILONS}


@pytest.fixture(scope="module")
def run(cnn_logits):
  return jax.jit(lambda keys, images, labels: MSD(keys, cnn_logits, images, labels))


def test_each_image_is_in_one_of_the_balls_and_in_range_and_its_loss_rises(run, keys, images, labels, cnn_logits):
  result = run(keys, images, labels)
  shortest = np.min(list(_lengths(result.images - images).values()), axis=0)
  assert (shortest <= 1 + 1e-5).all() and (shortest > 0).all()
  assert jnp.min(result.images) >= 0 and jnp.max(result.images) <= 1
  gain = losses.cross_entropy(cnn_logits(result.images), labels) - losses.cross_entropy(cnn_logits(images), labels)
  assert (gain >= 0).all() and jnp.mean(gain) > 0.1
  assert result.surviving_steps.dtype == jnp.int32 and result.surviving_steps.max() <= 5


@pytest.mark.parametrize("norm", EPSILONS)
def test_with_one_norm_it_is_pgd(norm, keys, images, labels, linear_logits):
  """Uses a linear model, whose loss rises at every step if steps are short."""
  step_size, labels = 0.2 * EPSILONS[norm], linear_logits(images).argmax(axis=1)
  found = attacks.msd(
    keys, linear_logits, images, labels,
    radii={norm: EPSILONS[norm]}, step_sizes={norm: step_size}, num_steps=4, loss="margin",
  )  # fmt: skip
  alone = attacks.pgd(
    keys, linear_logits, images, labels,
    epsilon=EPSILONS[norm], norm=norm, step_size=step_size, num_steps=4, loss="margin", random_start="none",
  )  # fmt: skip
  np.testing.assert_allclose(found.images, alone.images, atol=1e-6)
  np.testing.assert_array_equal(found.surviving_steps, alone.surviving_steps)


@pytest.mark.parametrize("wide", EPSILONS)
def test_it_finds_the_ball_in_which_a_linear_model_falls_furthest(wide, keys, linear_weights):
  """The margin rises by epsilon times the dual norm of its gradient; images lie far from 0 and 1."""
  images, labels = jnp.full((16, 8, 8, 1), 0.5), jnp.arange(16) % 2
  gradient = linear_weights[:, 1] - linear_weights[:, 0]
  dual = {"linf": np.abs(gradient).sum(), "l2": np.sqrt((gradient**2).sum()), "l1": np.abs(gradient).max()}
  radii = {norm: (0.5 if norm == wide else 0.1) / dual[norm] for norm in dual}
  result = attacks.msd(
    keys, lambda x: x.reshape(16, -1) @ linear_weights[:, :2], images, labels,
    radii=radii, step_sizes=radii, num_steps=3, loss="margin", sparsity=1.0,
  )  # fmt: skip
  delta = result.images - images
  gain = jnp.where(labels == 0, 1.0, -1.0) * (delta.reshape(16, -1) @ gradient)
  np.testing.assert_allclose(gain, 0.5, rtol=1e-4)
  np.testing.assert_allclose(threat_model.get_norm(wide).length(delta), radii[wide], rtol=1e-4)


def _steps_written_out(images, labels, weights, num_steps):
  """MSD in L-infinity and L2 in NumPy, one image at a time."""
  found = []
  for image, label in zip(np.asarray(images, np.float64), np.asarray(labels), strict=True):
    loss = lambda x, label=label: np.log(np.exp(x.ravel() @ weights).sum()) - (x.ravel() @ weights)[label]
    point = best = image
    for _ in range(num_steps):
      odds = np.exp(point.ravel() @ weights)
      gradient = (weights @ (odds / odds.sum() - np.eye(5)[label])).reshape(image.shape)
      in_linf = np.clip(point + STEP_SIZES["linf"] * np.sign(gradient) - image, -EPSILONS["linf"], EPSILONS["linf"])
      in_l2 = point + STEP_SIZES["l2"] * gradient / np.sqrt((gradient**2).sum()) - image
      in_l2 *= min(1.0, EPSILONS["l2"] / np.sqrt((in_l2**2).sum()))
      point = max((np.clip(image + delta, 0, 1) for delta in (in_l2, in_linf)), key=loss)
      best = max(best, point, key=loss)
    found.append(best)
  return np.array(found)


def test_its_steps_are_the_papers(keys, images, labels, linear_logits, linear_weights):
  expected = _steps_written_out(images, labels, linear_weights.astype(np.float64), 6)
  two = lambda lengths: {norm: lengths[norm] for norm in ("linf", "l2")}
  found = attacks.msd(
    keys, linear_logits, images, labels, radii=two(EPSILONS), step_sizes=two(STEP_SIZES), num_steps=6
  ).images
  np.testing.assert_allclose(found, expected, atol=1e-5)
  lengths = _lengths(expected - np.asarray(images))
  assert {bool(inside) for inside in lengths["l2"] <= 1 + 1e-6} == {True, False}  # images differ in the worst norm


def test_more_steps_never_find_less(keys, images, labels, linear_logits):
  """The point with the highest loss is returned: here, steps are long and the loss oscillates with every pixel."""
  wavy = lambda x: linear_logits(jnp.sin(60.0 * x))
  found = []
  for num_steps in (0, 1, 3, 6):
    result = attacks.msd(keys, wavy, images, labels, radii=EPSILONS, step_sizes=EPSILONS, num_steps=num_steps)
    found.append(np.asarray(losses.cross_entropy(wavy(result.images), labels)))
  assert (np.diff(found, axis=0) >= -1e-4).all() and np.mean(found[-1] > found[0]) > 0.9


@pytest.mark.parametrize("size", [1, 7])
def test_an_image_has_one_adversarial_whatever_its_batch(size, run, keys, images, labels):
  whole, order = run(keys, images, labels), jax.random.permutation(jax.random.key(5), 16)[:size]
  part = run(keys[order], images[order], labels[order])
  np.testing.assert_allclose(part.images, whole.images[order], atol=1e-5)


@pytest.mark.slow
def test_devices_change_nothing(run, keys, images, labels):
  specs = {"in_specs": PartitionSpec(sharding.AXIS), "out_specs": PartitionSpec(sharding.AXIS)}
  sharded = jax.jit(jax.shard_map(run, mesh=sharding.make_mesh(2), **specs))(keys, images, labels)
  np.testing.assert_allclose(sharded.images, run(keys, images, labels).images, atol=1e-5)


def test_radius_0_is_the_identity_and_may_be_traced(keys, images, labels, linear_logits):
  attack = attacks.from_config({
    "name": "msd", "radii": {"Linf": "8/255", "L1": "1"}, "step_sizes": {"Linf": "2/255", "L1": "0.5"},
    "num_steps": 3,
  })  # fmt: skip
  assert attack.keywords["radii"] == {"Linf": 8 / 255, "L1": 1.0}
  ramped = jax.jit(lambda factor: attacks.scaled(attack, factor)(keys, linear_logits, images, labels).images)
  np.testing.assert_array_equal(ramped(0.0), images)
  np.testing.assert_allclose(ramped(1.0), attack(keys, linear_logits, images, labels).images, atol=1e-6)
  assert jnp.abs(ramped(1.0) - images).max() > 0


def test_a_coordinate_without_a_gradient_takes_no_step_and_the_others_do(keys, images, linear_logits):
  labels = linear_logits(images).argmax(axis=1)
  found, expected = (MSD(keys, lambda x, way=way: linear_logits(way(x)), images, labels) for way in (BROKEN, ZERO))
  np.testing.assert_array_equal(found.images, expected.images)
  np.testing.assert_array_equal(found.broken_gradients, 5)
  np.testing.assert_array_equal(found.images[:, ROWS], images[:, ROWS])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"radii": {"linf": 2, "l1": 1}}, r"radii.linf=2 is outside \[0, 1\]"),
    ({"radii": 0.1}, "radii=0.1 must have a value for each norm"),
    ({"step_sizes": {"l2": 0.1}}, r"step_sizes has the norms \['l2'\], but radii has \['l1', 'l2', 'linf'\]"),
    ({"step_sizes": STEP_SIZES | {"l1": -1}}, r"step_sizes.l1=-1 is outside \[0, 1e6\]"),
    ({"radii": {"l3": 0.1}}, "radii='l3' is unknown; choose from"),
    ({"loss": "kl"}, "loss='kl' is unknown; choose from"),
  ],
)
def test_bad_arguments_are_named(change, message, keys, images, labels, linear_logits):
  with pytest.raises(ValueError, match=message):
    MSD(keys, linear_logits, images, labels, **change)
