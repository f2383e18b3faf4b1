"""Auto-PGD: its schedule, closed forms on linear models, what it returns, and its steps against a NumPy reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lrat_jax import attacks
from lrat_jax.attacks import threat_model
from lrat_jax.attacks._apgd import check_periods
from lrat_jax.core import sharding

RADII = {"linf": 0.06, "l2": 0.5, "l1": 3.0}
LOSSES = {"ce": {}, "dlr": {}, "dlr_targeted": {"target_rank": 1}}


@pytest.fixture(scope="module")
def answers(cnn_logits, images):
  """The model's predictions as labels, so that every image has to be attacked."""
  return cnn_logits(images).argmax(axis=1)


@pytest.fixture(scope="module", params=[(norm, loss) for norm in RADII for loss in LOSSES], ids="-".join)
def attack(request, cnn_logits):
  """APGD on the small network, compiled: (keys, images, labels) -> AttackResult."""
  norm, loss = request.param
  partial = functools.partial(attacks.apgd, norm=norm, loss=loss, num_steps=20, epsilon=RADII[norm], **LOSSES[loss])
  run = jax.jit(lambda keys, images, labels: partial(keys, cnn_logits, images, labels))
  return functools.partial(run), norm


def test_checks_come_after_22_19_16_13_10_7_and_6_steps():
  periods = check_periods(100)
  assert periods[periods > 0].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]
  assert np.flatnonzero(periods).tolist() == [21, 40, 56, 69, 79, 86, 92, 98]
  assert check_periods(10)[check_periods(10) > 0].tolist() == [2, 1, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.slow
def test_result_is_in_the_ball_and_fools(attack, keys, images, answers, cnn_logits):
  run, norm = attack
  result = run(keys, images, answers)
  assert jnp.max(threat_model.get_norm(norm).length(result.images - images)) <= RADII[norm] * (1 + 1e-5)
  assert result.images.min() >= 0 and result.images.max() <= 1
  fooled = cnn_logits(result.images).argmax(axis=1) != answers
  assert fooled.mean() > 0.5
  assert (result.surviving_steps[~fooled] == 20).all() and (result.surviving_steps[fooled] < 20).any()


@pytest.mark.slow
def test_an_image_has_one_adversarial_whatever_its_batch(attack, keys, images, answers):
  run, _ = attack
  whole = run(keys, images, answers)
  order = jnp.array([3, 15, 1, 8, 4, 0, 2, 9])
  part = run(keys[order], images[order], answers[order])
  np.testing.assert_allclose(part.images, whole.images[order], atol=2e-3)
  np.testing.assert_array_equal(part.surviving_steps, whole.surviving_steps[order])


@pytest.mark.slow
def test_runs_on_devices_as_on_one(keys, images, answers, cnn_logits):
  for norm, loss in (("linf", "ce"), ("l1", "dlr_targeted")):
    run = functools.partial(
      attacks.apgd, norm=norm, loss=loss, epsilon=RADII[norm], num_steps=10, early_stop=True, **LOSSES[loss]
    )
    spec = PartitionSpec(sharding.AXIS)
    sharded = jax.shard_map(
      lambda keys, images, labels, run=run: run(keys, cnn_logits, images, labels),
      mesh=sharding.make_mesh(2), in_specs=spec, out_specs=spec,
    )  # fmt: skip
    many, one = jax.jit(sharded)(keys, images, answers), run(keys, cnn_logits, images, answers)
    np.testing.assert_allclose(many.images, one.images, atol=2e-3)


def _two_class(linear_weights):
  return lambda x: x.reshape(x.shape[0], -1) @ linear_weights[:, :2]


def _gradients(weights, labels):
  return np.stack([weights[:, 1 - label] - weights[:, label] for label in labels]).reshape(-1, 8, 8, 1)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_reaches_the_best_point_of_a_linear_model(norm, keys, linear_weights):
  images, labels = jnp.full((16, 8, 8, 1), 0.5), np.arange(16) % 2
  gradient = _gradients(linear_weights, labels)
  epsilon = {"linf": 0.05, "l2": 0.3, "l1": 0.4}[norm]
  result = attacks.apgd(
    keys, _two_class(linear_weights), images, jnp.asarray(labels), epsilon=epsilon, norm=norm, loss="margin"
  )
  dual = {"linf": np.abs(gradient).sum((1, 2, 3)), "l2": np.sqrt((gradient**2).sum((1, 2, 3)))}
  dual["l1"] = np.abs(gradient).max(axis=(1, 2, 3))
  gain = ((np.asarray(result.images) - 0.5) * gradient).sum(axis=(1, 2, 3))
  # L1 steps move several coordinates at a time, so the attack only comes close to the best point.
  np.testing.assert_allclose(gain, epsilon * dual[norm], rtol=0.1 if norm == "l1" else 1e-3)


def test_early_stop_fools_the_same_images_at_their_first_adversarial(keys, images, answers, cnn_logits):
  run = functools.partial(attacks.apgd, keys, cnn_logits, images, answers, epsilon=0.02, num_steps=20)
  late, early = run(), run(early_stop=True)
  fooled = [np.asarray(cnn_logits(result.images).argmax(axis=1) != answers) for result in (late, early)]
  np.testing.assert_array_equal(*fooled)
  assert 0 < fooled[0].sum() < 16
  assert (early.surviving_steps <= late.surviving_steps).all()


@pytest.mark.slow
def test_restarts_never_lose_what_one_run_found(keys, images, answers, cnn_logits):
  run = functools.partial(attacks.apgd, keys, cnn_logits, images, answers, epsilon=0.015, num_steps=3)
  right = [np.asarray(cnn_logits(run(num_restarts=n).images).argmax(axis=1) == answers) for n in (1, 4)]
  assert (right[1] <= right[0]).all()


@pytest.mark.slow
def test_rank_and_targets_name_the_same_class(keys, images, linear_logits):
  logits = linear_logits(images)
  labels = logits.argmax(axis=1)
  # In such a small ball the attack fails on most images, which are then returned at their highest loss.
  run = functools.partial(attacks.apgd, keys, linear_logits, images, labels, epsilon=0.001, loss="dlr_targeted")
  for rank in (1, 2, 4):
    targets = jnp.argsort(-logits, axis=1)[:, rank]
    by_rank, by_class = run(num_steps=5, target_rank=rank), run(num_steps=5, targets=targets)
    same = ~by_rank.success
    np.testing.assert_array_equal(by_rank.images[same], by_class.images[same])
    assert same.sum() > 8


@pytest.mark.slow
def test_gradients_of_a_random_model_are_averaged(keys, images, linear_weights):
  # The weights are noisy: the steepest direction of one draw is poor, that of many draws is nearly that of the mean.
  labels = jnp.arange(16) % 2

  def logits_fn(x, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (64, 2)))(keys)
    return jnp.einsum("bd,bdk->bk", x.reshape(x.shape[0], -1), linear_weights[:, :2] + 3.0 * noise)

  images = jnp.full((16, 8, 8, 1), 0.5)
  gradient = _gradients(linear_weights, np.asarray(labels))

  def gain(samples):
    result = attacks.apgd(keys, logits_fn, images, labels, epsilon=0.1, num_steps=10, loss="margin", eot_iter=samples)
    return float(((np.asarray(result.images) - 0.5) * gradient).sum())

  assert gain(40) > 1.5 * gain(1)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"epsilon": -0.1}, r"epsilon=-0.1 is outside \[0, 1\]"),
    ({"num_steps": 0}, "num_steps=0 must be an integer from 1"),
    ({"eot_iter": -1}, "eot_iter=-1 must be an integer from 0"),
    ({"norm": "l7"}, "norm='l7' is unknown; choose from"),
    ({"loss": "mse"}, "loss='mse' is unknown; choose from"),
    ({"loss": "dlr_targeted"}, "loss='dlr_targeted' needs targets or target_rank"),
    ({"loss": "dlr_targeted", "target_rank": 5}, r"target_rank=5 is outside \[1, 4\] for 5 classes"),
    ({"loss": "dlr_targeted", "targets": jnp.zeros(3, int)}, r"targets must be integers of shape \(16,\)"),
  ],
)
def test_bad_arguments_are_named(change, message, keys, images, labels, linear_logits):
  with pytest.raises(ValueError, match=message):
    attacks.apgd(keys, linear_logits, images, labels, **{"epsilon": 0.1, "num_steps": 2, **change})


def _wavy_logits(images):
  """Logits with losses that rise and fall many times inside a ball, while the first logit stays the largest."""
  first = jax.random.normal(jax.random.key(5), (64, 24))
  second = jax.random.normal(jax.random.key(6), (24, 4))
  waves = 0.25 * jnp.sin(3.0 * images.reshape(len(images), -1) @ first) @ second
  return waves + jnp.array([8.0, 0.0, 0.0, 0.0])


_LOSSES_OF_ONE = {
  "ce": lambda x: -jax.nn.log_softmax(_wavy_logits(x[None]))[0, 0],
  "margin": lambda x: jnp.max(_wavy_logits(x[None])[0, 1:]) - _wavy_logits(x[None])[0, 0],
}


def _reference(start, images, epsilon, norm, loss_name, num_steps):
  """The best points of APGD for label 0, image by image in NumPy, with the table of losses of the original."""
  ask = jax.jit(jax.value_and_grad(_LOSSES_OF_ONE[loss_name]))

  def project(x, center):
    delta = x - center
    if norm == "l2":
      return np.clip(center + delta * min(1.0, epsilon / np.linalg.norm(delta)), 0, 1)
    return np.clip(center + np.clip(delta, -epsilon, epsilon), 0, 1)

  def run(x, center):
    loss, gradient = map(np.asarray, ask(x))
    best, best_x, best_gradient, old_x = loss, x, gradient, x
    losses, step, halved, at_check = np.zeros(num_steps), 2 * epsilon, True, loss
    period, waited = max(int(0.22 * num_steps), 1), 0
    for i in range(num_steps):
      share = 0.75 if i else 1.0
      direction = np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)
      ahead = project(x + step * direction, center)
      x, old_x = project(x + share * (ahead - x) + (1 - share) * (x - old_x), center), x
      loss, gradient = map(np.asarray, ask(x.astype(np.float32)))
      losses[i] = loss
      if loss > best:
        best, best_x, best_gradient = loss, x, gradient
      waited += 1
      if waited == period:
        rises = sum(losses[i - back] > losses[i - back - 1] for back in range(period))
        halved = rises <= 0.75 * period or (not halved and at_check >= best)
        at_check, waited = best, 0
        period = max(period - max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1))
        if halved:
          step, x, gradient = step / 2, best_x, best_gradient
    return best_x

  return np.stack([run(*each) for each in zip(start, images, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("norm", "epsilon", "loss", "num_steps"),
  [
    ("linf", 0.02, "ce", 30),
    ("l2", 0.12, "ce", 30),
    ("linf", 0.02, "margin", 30),
    # In larger balls the first steps overshoot, so checks also meet losses that rise below an unchanged best loss.
    ("linf", 0.1, "ce", 9),
    ("l2", 0.6, "margin", 9),
  ],
)
def test_steps_as_a_reference_in_numpy(norm, epsilon, loss, num_steps, keys, images):
  labels = np.zeros(len(images), np.int32)
  draw = jax.random.normal if norm == "l2" else functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0)
  noise = np.asarray(jax.vmap(lambda key: draw(key, images.shape[1:]))(keys))
  flat = noise.reshape(len(noise), -1)
  length = np.linalg.norm(flat, axis=1) if norm == "l2" else np.abs(flat).max(axis=1)
  start = np.clip(np.asarray(images) + epsilon * noise / length[:, None, None, None], 0, 1).astype(np.float32)
  run = functools.partial(attacks.apgd, epsilon=epsilon, norm=norm, loss=loss, num_steps=num_steps)
  result = jax.jit(lambda: run(keys, _wavy_logits, images, labels))()
  assert (result.surviving_steps == num_steps).all()  # the attack fails on all images, so it returns their best points
  expected = _reference(start, np.asarray(images), epsilon, norm, loss, num_steps)
  # Rounding sometimes flips the sign of a gradient that is almost 0.
  assert np.mean(np.abs(result.images - expected) > 1e-4) < 0.01
