"""The PGD loop: properties of every attack that uses it, closed forms on linear models, and the count of steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import attacks
from lrat_jax.attacks import losses, threat_model

SUITE = {
  "fgsm": functools.partial(attacks.fgsm, epsilon=0.1),
  "pgd": functools.partial(attacks.pgd, epsilon=0.1, step_size=0.03, num_steps=5),
  "pgd_dlr": functools.partial(attacks.pgd, epsilon=0.1, step_size=0.03, num_steps=5, loss="dlr"),
  "pgd_kl": functools.partial(
    attacks.pgd, epsilon=0.1, step_size=0.03, num_steps=5, loss="kl", random_start="gaussian"
  ),
  "cw": functools.partial(attacks.cw, epsilon=0.1, step_size=0.03, num_steps=5),
  "fgsm_l2": functools.partial(attacks.fgsm, epsilon=0.5, norm="l2"),
  "pgd_l2": functools.partial(attacks.pgd, epsilon=0.5, step_size=0.15, num_steps=5, norm="l2"),
  "pgd_l1": functools.partial(attacks.pgd, epsilon=2.0, step_size=0.6, num_steps=5, norm="l1", sparsity=0.9),
  "restarts": functools.partial(attacks.pgd, epsilon=0.1, step_size=0.03, num_steps=5, num_restarts=3),
}


@pytest.fixture(scope="module", params=sorted(SUITE))
def attack(request, cnn_logits):
  """An attack on the small network, compiled: (keys, images, labels, epsilon) -> AttackResult."""
  partial = SUITE[request.param]

  @jax.jit
  def run(keys, images, labels, epsilon):
    return partial(keys, cnn_logits, images, labels, epsilon=epsilon)

  run.epsilon, run.norm = partial.keywords["epsilon"], partial.keywords.get("norm", "linf")
  run.loss, run.num_steps = partial.keywords.get("loss", "ce"), partial.keywords.get("num_steps", 1)
  return run


def test_result_is_in_the_ball_and_in_range(attack, keys, images, labels):
  adversarial = attack(keys, images, labels, attack.epsilon).images
  length = threat_model.get_norm(attack.norm).length(adversarial - images)
  assert jnp.max(length) <= attack.epsilon + 1e-6
  assert jnp.min(adversarial) >= 0 and jnp.max(adversarial) <= 1
  assert jnp.min(length) > 0


def test_epsilon_0_is_the_identity(attack, keys, images, labels):
  np.testing.assert_array_equal(attack(keys, images, labels, 0.0).images, images)


def test_the_attacks_own_loss_rises(attack, keys, images, labels, cnn_logits):
  adversarial = attack(keys, images, labels, attack.epsilon).images
  surrogate = losses.surrogate(attack.loss, cnn_logits, images, labels)
  gain = surrogate(cnn_logits(adversarial)) - surrogate(cnn_logits(images))
  assert jnp.mean(gain) > 0 and jnp.mean(gain > 0) > 0.8


def test_same_keys_same_images(attack, keys, images, labels):
  first, second = (attack(keys, images, labels, attack.epsilon).images for _ in range(2))
  np.testing.assert_array_equal(first, second)


def test_other_keys_other_images_where_there_is_chance(attack, keys, images, labels):
  other = jax.random.split(jax.random.key(99), 16)
  first, second = (attack(k, images, labels, attack.epsilon).images for k in (keys, other))
  assert bool(jnp.any(first != second)) == (attack.num_steps > 1)


def test_an_image_has_one_adversarial_whatever_its_batch(attack, keys, images, labels):
  whole = attack(keys, images, labels, attack.epsilon)
  order = jax.random.permutation(jax.random.key(5), 16)[:8]
  part = attack(keys[order], images[order], labels[order], attack.epsilon)
  np.testing.assert_allclose(part.images, whole.images[order], atol=1e-5)
  np.testing.assert_array_equal(part.surviving_steps, whole.surviving_steps[order])


def test_surviving_steps_are_counted(attack, keys, images, labels):
  survived = attack(keys, images, labels, attack.epsilon).surviving_steps
  assert survived.shape == (16,) and survived.dtype == jnp.int32
  assert survived.min() >= 0 and survived.max() <= attack.num_steps


@pytest.mark.slow
def test_no_gradient_flows_through_an_attack(attack, keys, images, labels):
  gradient = jax.grad(lambda x: attack(keys, x, labels, attack.epsilon).images.sum())(images)
  np.testing.assert_array_equal(gradient, 0.0)


def _margin_gradients(weights, labels, runner_up):
  return (weights[:, runner_up] - weights[:, labels]).T.reshape(-1, 8, 8, 1)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_linf_reaches_the_closed_form_on_a_linear_model(name, keys, linear_weights):
  # Two classes: the steepest direction is sign(w_other - w_true) everywhere; images lie far from 0 and 1.
  images, labels = jnp.full((16, 8, 8, 1), 0.5), jnp.arange(16) % 2
  logits_fn = lambda x: x.reshape(16, -1) @ linear_weights[:, :2]
  result = SUITE[name](keys, logits_fn, images, labels) if name == "fgsm" else attacks.pgd(
    keys, logits_fn, images, labels, epsilon=0.1, step_size=0.03, num_steps=10
  )  # fmt: skip
  expected = 0.5 + 0.1 * np.sign(_margin_gradients(linear_weights, labels, 1 - labels))
  np.testing.assert_allclose(result.images, expected, atol=1e-6)


def test_l2_reaches_the_closed_form_on_a_linear_model(keys, linear_weights):
  images, labels = jnp.full((16, 8, 8, 1), 0.5), jnp.arange(16) % 2
  logits_fn = lambda x: x.reshape(16, -1) @ linear_weights[:, :2]
  result = attacks.pgd(keys, logits_fn, images, labels, epsilon=0.5, step_size=0.2, num_steps=60, norm="l2", loss="cw")
  gradient = _margin_gradients(linear_weights, labels, 1 - labels)
  expected = 0.5 + 0.5 * gradient / np.sqrt((gradient**2).sum(axis=(1, 2, 3), keepdims=True))
  np.testing.assert_allclose(result.images, expected, atol=1e-4)


@pytest.mark.parametrize("sparsity", [1.0, 0.9])
def test_l1_moves_the_steepest_coordinates_alone(sparsity, keys, linear_weights):
  images, labels = jnp.full((16, 8, 8, 1), 0.5), jnp.arange(16) % 2
  logits_fn = lambda x: x.reshape(16, -1) @ linear_weights[:, :2]
  delta = attacks.pgd(
    keys, logits_fn, images, labels,
    epsilon=2.0, step_size=0.4, num_steps=1, norm="l1", loss="cw", random_start="none", sparsity=sparsity,
  ).images - images  # fmt: skip
  gradient = np.asarray(_margin_gradients(linear_weights, labels, 1 - labels))
  count = 1 if sparsity == 1.0 else 7  # a tenth of 64 coordinates
  least = np.sort(np.abs(gradient).reshape(16, -1), axis=1)[:, -count].reshape(16, 1, 1, 1)
  expected = np.where(np.abs(gradient) >= least, 0.4 / count * np.sign(gradient), 0)
  np.testing.assert_allclose(delta, expected, atol=1e-6)


def test_l1_moves_no_coordinate_that_the_range_holds_back(keys, linear_weights):
  """A coordinate at 0 can only rise: those that would fall are not part of the step, which keeps its length."""
  images, labels = jnp.zeros((16, 8, 8, 1)), jnp.arange(16) % 2
  logits_fn = lambda x: x.reshape(16, -1) @ linear_weights[:, :2]
  delta = attacks.pgd(
    keys, logits_fn, images, labels,
    epsilon=2.0, step_size=0.4, num_steps=5, norm="l1", loss="cw", random_start="none", sparsity=0.9,
  ).images  # fmt: skip
  assert (delta >= 0).all() and not (delta * (_margin_gradients(linear_weights, labels, 1 - labels) < 0)).any()
  np.testing.assert_allclose(delta.sum(axis=(1, 2, 3)), 2.0, rtol=1e-4)


def test_surviving_steps_equal_a_count_in_python(keys, images, labels, linear_logits):
  survived = np.zeros(16, int)
  points = images
  for _ in range(6):
    survived += np.asarray(linear_logits(points).argmax(axis=1) == labels)
    gradient = jax.grad(lambda x: losses.cross_entropy(linear_logits(x), labels).sum())(points)
    points = jnp.clip(jnp.clip(points + 0.004 * jnp.sign(gradient), images - 0.1, images + 0.1), 0, 1)
  result = attacks.pgd(
    keys, linear_logits, images, labels, epsilon=0.1, step_size=0.004, num_steps=6, random_start="none"
  )
  np.testing.assert_array_equal(result.surviving_steps, survived)
  np.testing.assert_allclose(result.images, points, atol=1e-6)
  assert 0 < survived.sum() < 6 * 16


@pytest.mark.slow
def test_restarts_never_lose_what_one_run_found(keys, images, cnn_logits):
  labels = cnn_logits(images).argmax(axis=1)
  run = functools.partial(attacks.pgd, logits_fn=cnn_logits, epsilon=0.04, step_size=0.013, num_steps=1)
  right = []
  for num_restarts in (1, 2, 8):
    adversarial = jax.jit(functools.partial(run, num_restarts=num_restarts))(keys, images=images, labels=labels).images
    right.append(np.asarray(cnn_logits(adversarial).argmax(axis=1) == labels))
  assert (right[1] <= right[0]).all() and (right[2] <= right[1]).all()
  assert 0 < right[2].sum() < right[0].sum()


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_keys_of_any_kind_are_per_image(kind, images, labels, linear_logits):
  start = functools.partial(attacks.pgd, epsilon=0.1, step_size=0.0, num_steps=1)
  few = jnp.array([3, 1, 7])
  keys = jax.random.split(jax.random.key(2, impl=kind), 16)
  whole = start(keys, linear_logits, images, labels)
  part = start(keys[few], linear_logits, images[few], labels[few])
  np.testing.assert_array_equal(part.images, whole.images[few])
  indexed = lambda key: start(attacks.example_keys(key, jnp.arange(16)), linear_logits, images, labels).images
  np.testing.assert_array_equal(indexed(jax.random.key(2, impl=kind))[few], indexed(jax.random.key(2))[few])


def test_a_single_key_is_split_over_the_batch(images, labels, linear_logits):
  key = jax.random.key(7)
  run = functools.partial(
    attacks.pgd, logits_fn=linear_logits, images=images, labels=labels, epsilon=0.1, step_size=0.02
  )
  single = run(key, num_steps=2).images
  np.testing.assert_array_equal(single, run(attacks.example_keys(key, jnp.arange(16)), num_steps=2).images)


def test_the_compiled_attack_is_reused(keys, images, labels, linear_logits):
  traces = []

  @jax.jit
  def run(keys, images, labels, epsilon):
    traces.append(1)
    return attacks.pgd(keys, linear_logits, images, labels, epsilon=epsilon, step_size=epsilon / 4, num_steps=3)

  for epsilon in (0.1, 0.2):
    run(keys, images, labels, epsilon)
  assert len(traces) == 1


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"epsilon": -0.1}, r"epsilon=-0.1 is outside \[0, 1\]"),
    ({"epsilon": 1.5}, r"epsilon=1.5 is outside \[0, 1\]"),
    ({"step_size": -1.0}, r"step_size=-1 is outside \[0, 1e6\]"),
    ({"step_size": 1e300}, r"step_size=1e\+300 is outside \[0, 1e6\]"),
    ({"num_steps": -1}, "num_steps=-1 must be an integer from 0"),
    ({"num_restarts": 0}, "num_restarts=0 must be an integer from 1"),
    ({"norm": "l7"}, "norm='l7' is unknown; choose from"),
    ({"loss": "mse"}, "loss='mse' is unknown; choose from"),
    ({"random_start": "yes"}, "random_start='yes' is unknown; choose from"),
    ({"loss": "kl", "random_start": "none"}, "loss='kl' has no gradient at the clean image"),
    ({"labels": jnp.zeros(3, int)}, r"labels must be integers of shape \(16,\)"),
    ({"images": jnp.zeros((16, 8, 8, 1), jnp.uint8)}, "images must be float"),
    ({"key": jax.random.PRNGKey(0)}, "key must be a typed key"),
    ({"key": jax.random.split(jax.random.key(0), 3)}, r"key has shape \(3,\)"),
  ],
)
def test_bad_arguments_are_named(change, message, keys, images, labels, linear_logits):
  arguments = {"key": keys, "logits_fn": linear_logits, "images": images, "labels": labels}
  arguments |= {"epsilon": 0.1, "step_size": 0.02, "num_steps": 2} | change
  with pytest.raises(ValueError, match=message):
    attacks.pgd(**arguments)


def test_a_success_that_nobody_asks_for_is_not_computed(keys, linear_logits, images, labels):
  run = functools.partial(attacks.pgd, logits_fn=linear_logits, epsilon=0.1, step_size=0.03, num_steps=2)
  compiled = lambda function: jax.jit(function).lower(keys, images, labels).compile().as_text()
  alone = compiled(lambda keys, images, labels: run(keys, images=images, labels=labels).images)
  whole = compiled(lambda keys, images, labels: run(keys, images=images, labels=labels))
  assert alone.count(" dot(") == 2 and whole.count(" dot(") == 3


def test_channels_before_pixels_are_warned_of(linear_logits, labels):
  images = jnp.full((16, 1, 8, 8), 0.5)
  with pytest.warns(UserWarning, match="transpose them to"):
    attacks.pgd(jax.random.key(0), linear_logits, images, labels, epsilon=0.1, step_size=0.1, num_steps=1)
