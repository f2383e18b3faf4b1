"""The training step: each method equals its formula, the attack in it, and the norms that it reports."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lrat_jax import attacks, models, reweighting
from lrat_jax.training import gradients, phases
from lrat_jax.training import step as step_lib
from tests.helpers import make_config, make_experiment, to_numpy
from tests.training.step_case import BOTH, FIELDS, LOCAL, PLAIN, make_batch, make_step, train


@pytest.mark.slow
def test_batch_norm_statistics_move_and_stay_finite():
  state, _ = train(2, LOCAL, steps=2, model__name="wide_resnet_10_1")
  means = [leaf for path, leaf in jax.tree.leaves_with_path(state.variables["batch_stats"]) if "mean" in str(path)]
  assert means and all(np.isfinite(mean).all() for mean in means) and any(np.abs(mean).max() > 1e-3 for mean in means)


@pytest.mark.slow
@pytest.mark.parametrize("phase", [PLAIN, LOCAL, BOTH])
def test_one_step_equals_the_method_written_out(phase):
  """SGD on 1/n sum_i w_i [omega_i0 l(x_i) + sum_j omega_ij l(x~_ij)] with weights held constant."""
  config = make_config("digits,pgd,cw", **FIELDS | {"train_attacks__cw__num_steps": 3, "optimizer__momentum": 0.0})
  experiment = make_experiment(config)
  before = experiment.initial_state()
  params = before.variables["params"]
  batch = make_batch(experiment, 0)
  images, labels = batch["images"], batch["labels"]
  logits = jax.jit(lambda p, x: experiment.model.apply({"params": p}, x))

  key = jax.random.fold_in(step_lib.stream_key(0, "attack"), 0)
  keys = attacks.example_keys(key, batch["indices"])
  results = []
  for j, (name, steps) in enumerate({"cw": 3, "pgd": 2}.items()):  # keys of a configuration are in alphabetical order
    variant_keys = jax.vmap(lambda k, j=j: jax.random.fold_in(k, j))(keys)
    attack = {"cw": attacks.cw, "pgd": attacks.pgd}[name]
    budget = {"epsilon": 0.2, "step_size": 0.05, "num_steps": steps}
    run = jax.jit(
      lambda k, attack=attack, budget=budget: attack(k, lambda x: logits(params, x), images, labels, **budget)
    )
    results.append(run(variant_keys))
  scores = jnp.stack([reweighting.vulnerability(logits(params, r.images), labels) for r in results], axis=1)
  omega_0, omega = np.zeros(16), np.full((16, 2), 0.5)
  if phase.use_local_weights:
    options = config.local_weights
    omega = 0.5 * (1 + np.tanh(options.slope * (np.asarray(scores) - options.bias))) / 2
    omega_0 = np.maximum(1 - omega.sum(axis=1), options.minimum_natural)
  across = np.ones(16)
  if phase.use_global_weights:
    survived = np.mean([results[0].surviving_steps / 3, results[1].surviving_steps / 2], axis=0)
    across = 1 + np.tanh(5 * (1 - 2 * survived) - 1)
    across /= across.mean()

  def loss_fn(p):
    nll = lambda x: optax.softmax_cross_entropy_with_integer_labels(logits(p, x), labels)
    return jnp.mean(across * (omega_0 * nll(images) + sum(omega[:, j] * nll(r.images) for j, r in enumerate(results))))

  loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(params)
  expected = jax.tree.map(
    lambda p, g: np.asarray(p - config.optimizer.learning_rate * (g + config.optimizer.weight_decay * p)),
    params,
    gradient,
  )
  after, output = make_step(experiment, phase)(before, batch)
  np.testing.assert_allclose(output.loss, loss, rtol=1e-4)
  np.testing.assert_allclose(output.gradient_norm, optax.tree.norm(gradient), rtol=1e-3)
  np.testing.assert_allclose(output.natural_weights, omega_0, atol=1e-5)
  np.testing.assert_allclose(output.adversarial_weights, omega, atol=1e-5)
  np.testing.assert_allclose(output.global_weights, across, rtol=1e-3)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), to_numpy(after.variables["params"]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["max", "softmax"])
def test_weights_among_variants_need_no_forward_of_natural_images(kind):
  config = make_config("digits,pgd,cw", **FIELDS | {"local_weights__kind": kind})
  assert not phases.needs_natural(config, BOTH) and not phases.needs_natural(config, PLAIN)
  _, (output,) = train(1, LOCAL, steps=1, arg="digits,pgd,cw", local_weights__kind=kind)
  weigh = {
    "max": lambda v: np.where(v == v.max(axis=1, keepdims=True), 1.0, 0.0),
    "softmax": lambda v: np.exp(2.0 * v) / np.exp(2.0 * v).sum(axis=1, keepdims=True),
  }[kind]
  np.testing.assert_allclose(output.adversarial_weights, weigh(output.vulnerabilities), atol=1e-5)
  np.testing.assert_array_equal(output.natural_weights, 0.0)
  assert len(output.natural_correct) == 2  # a sample of the 16 images


def _written_out(experiment, phase, beta):
  """(state, batch, loss as a function of parameters) of a first step: TRADES, one variant, LRAT's or plain weights."""
  config = experiment.config
  state, batch = experiment.initial_state(), make_batch(experiment, 0)
  params, images, labels = state.variables["params"], batch["images"], batch["labels"]
  logits = jax.jit(lambda p, x: experiment.model.apply({"params": p}, x))
  keys = attacks.example_keys(jax.random.fold_in(step_lib.stream_key(0, "attack"), 0), batch["indices"])
  keys = jax.vmap(lambda k: jax.random.fold_in(k, 0))(keys)
  budget = {"epsilon": 0.2, "step_size": 0.05, "num_steps": 2}
  attacked = jax.jit(lambda k: attacks.pgd(k, lambda x: logits(params, x), images, labels, **budget).images)(keys)

  def loss_fn(p):
    natural, adversarial = logits(p, images), logits(p, attacked)
    scores = reweighting.vulnerability(adversarial, labels)
    omega, omega_0 = 1.0, 0.0
    if phase.use_local_weights:
      options = config.local_weights
      omega = (1 + jnp.tanh(options.slope * (scores - options.bias))) / 2
      omega_0 = jnp.maximum(1 - omega, options.minimum_natural)
    nll = optax.softmax_cross_entropy_with_integer_labels(natural, labels)
    p_natural, p_adversarial = jax.nn.softmax(natural), jax.nn.softmax(adversarial)
    divergence = jnp.sum(p_natural * jnp.log(p_natural / p_adversarial), axis=-1)
    return jnp.mean((omega_0 + omega) * nll + beta * omega * divergence)

  return state, batch, loss_fn


@pytest.mark.slow
@pytest.mark.parametrize("phase", [PLAIN, LOCAL])
def test_a_trades_step_equals_the_method_written_out(phase):
  fields = {"objective": "trades", "beta": 3.0, "optimizer__momentum": 0.0, "optimizer__weight_decay": 0.0}
  experiment = make_experiment(make_config(**FIELDS | fields))
  state, batch, loss_fn = _written_out(experiment, phase, beta=3.0)
  params = to_numpy(state.variables["params"])
  loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(params)
  after, output = make_step(experiment, phase)(state, batch)
  np.testing.assert_allclose(output.loss, loss, rtol=1e-4)
  rate = experiment.config.optimizer.learning_rate
  expected = jax.tree.map(lambda p, g: np.asarray(p - rate * g), params, gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), to_numpy(after.variables["params"]), expected)


@pytest.mark.slow
def test_awp_takes_the_gradient_at_the_perturbed_parameters():
  """Moves each kernel up its gradient by gamma |w|, takes the gradient there, and updates the original parameters."""
  fields = {"objective": "trades", "beta": 3.0, "awp__gamma": 0.05}
  plain = {"optimizer__momentum": 0.0, "optimizer__weight_decay": 0.0}
  experiment = make_experiment(make_config(**FIELDS | fields | plain))
  phase = phases.Phase(use_local_weights=False, use_global_weights=False, use_awp=True)
  state, batch, loss_fn = _written_out(experiment, phase, beta=3.0)
  params, gradient = to_numpy(state.variables["params"]), jax.jit(jax.grad(loss_fn))

  def move(weights, uphill):
    return weights + 0.05 * np.linalg.norm(weights) * uphill / np.linalg.norm(uphill) if weights.ndim > 1 else weights

  there = jax.tree.map(move, params, to_numpy(gradient(params)))
  after, output = make_step(experiment, phase)(state, batch)
  np.testing.assert_allclose(output.loss, loss_fn(there), rtol=1e-4)
  rate = experiment.config.optimizer.learning_rate
  expected = jax.tree.map(lambda p, g: np.asarray(p - rate * g), params, gradient(there))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), to_numpy(after.variables["params"]), expected)


@pytest.mark.slow
def test_outputs_follow_the_model():
  fields = {"model__name": "cnn_8", "train_attacks__pgd__epsilon": "0.05"}
  state, outputs = train(2, LOCAL, steps=60, optimizer__learning_rate=0.03, **fields)
  assert outputs[-1].natural_correct.mean() > 0.9 > outputs[0].natural_correct.mean()
  assert outputs[-1].loss < 0.5 * outputs[0].loss
  np.testing.assert_array_equal(outputs[-1].adversarial_correct, outputs[-1].vulnerabilities <= 0)
  assert state.step == 60


@pytest.mark.slow
def test_epsilon_grows_along_the_ramp():
  """At the first of 100 ramp steps, epsilon is a hundredth, so vulnerability is almost that of the clean image."""
  fields = {"train__epochs": 25, "train__epsilon_ramp_fraction": 1.0, "train_attacks__pgd__epsilon": "0.5"}
  _, (ramped,) = train(1, PLAIN, steps=1, **fields)
  _, (clean,) = train(1, PLAIN, steps=1, **fields | {"train_attacks__pgd__epsilon": "0"})
  _, (full,) = train(1, PLAIN, steps=1, **fields | {"train__epsilon_ramp_fraction": 0.0})
  near, far = (np.abs(x.vulnerabilities - clean.vulnerabilities).max() for x in (ramped, full))
  assert 0 < near < 0.1 * far


def test_augmentation_changes_with_step_and_image_only():
  fields = {
    "data__crop_padding": 2,
    "data__flip": True,
    "optimizer__learning_rate": 0.0,
    "train_attacks__pgd__epsilon": "0",
  }
  experiment = make_experiment(make_config(**FIELDS | fields))
  step, state = make_step(experiment, LOCAL), experiment.initial_state()
  batch = make_batch(experiment, 0)
  reversed_batch = {name: array[::-1] for name, array in batch.items()}
  _, turned = step(experiment.initial_state(), reversed_batch)
  state, first = step(state, batch)
  first = to_numpy(first)
  _, later = step(state, batch)
  np.testing.assert_allclose(turned.vulnerabilities[::-1], first.vulnerabilities, atol=1e-5)
  assert np.abs(later.vulnerabilities - first.vulnerabilities).max() > 1e-4


@pytest.mark.slow
def test_attacks_may_see_the_batchs_own_statistics():
  _, (running,) = train(1, PLAIN, steps=1, model__name="wide_resnet_10_1")
  _, (own,) = train(1, PLAIN, steps=1, model__name="wide_resnet_10_1", train__attack_batch_norm="train")
  _, (own_sharded,) = train(2, PLAIN, steps=1, model__name="wide_resnet_10_1", train__attack_batch_norm="train")
  assert np.abs(own.vulnerabilities - running.vulnerabilities).max() > 1e-4
  np.testing.assert_allclose(own_sharded.vulnerabilities, own.vulnerabilities, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "microbatch_size"), [("eval", 2), ("train", 16)])
def test_attacks_take_few_images_at_a_time_unless_these_share_their_statistics(monkeypatch, mode, microbatch_size):
  fields = {"model__name": "wide_resnet_10_1", "train__attack_batch_norm": mode}
  _, (whole,) = train(1, BOTH, steps=1, **fields)
  asked, seen = [], set()
  monkeypatch.setattr(models, "microbatch_size", lambda *of, platform: asked.append((*of, platform)) or 2)
  logits_fn = gradients.logits_fn

  def watched(*arguments):
    seeing = logits_fn(*arguments)
    return lambda images: seen.add(len(images)) or seeing(images)

  monkeypatch.setattr(gradients, "logits_fn", watched)
  _, (parts,) = train(1, BOTH, steps=1, **fields)
  assert seen == {microbatch_size} and set(asked) <= {("wide_resnet_10_1", 8, 8, "cpu")}
  for name, value in parts._asdict().items():
    np.testing.assert_allclose(value, getattr(whole, name), atol=1e-3, err_msg=name)


def test_phases_begin_after_their_share_of_the_epochs():
  config = make_config(
    train__epochs=10, local_weights__kind="lrat", local_weights__begin_fraction=0.3,
    global_weights__kind="mail", global_weights__begin_fraction=0.75, awp__gamma=0.01, awp__begin_fraction=0.1,
  )  # fmt: skip
  found = [phases.phase_at(config, epoch) for epoch in range(10)]
  assert [p.use_local_weights for p in found] == [False] * 3 + [True] * 7
  assert [p.use_global_weights for p in found] == [False] * 8 + [True] * 2
  assert [p.use_awp for p in found] == [False] + [True] * 9
  assert phases.phase_at(make_config(local_weights__begin_fraction=0.0, global_weights__begin_fraction=0.0), 0) == PLAIN


@pytest.mark.slow
def test_the_norm_that_a_step_tells_is_of_the_gradient_before_it_is_clipped():
  fields = {"optimizer__momentum": 0.0, "optimizer__weight_decay": 0.0, "optimizer__learning_rate": 1.0}
  experiments = [make_experiment(make_config(**FIELDS | fields | {"optimizer__clip_norm": c})) for c in (0.0, 1e-3)]
  (free, found), (clipped, told) = (make_step(e, PLAIN)(e.initial_state(), make_batch(e, 0)) for e in experiments)
  before = experiments[0].initial_state().variables["params"]
  length = lambda state: optax.tree.norm(optax.tree.sub(state.variables["params"], before))
  np.testing.assert_array_equal(told.gradient_norm, found.gradient_norm)
  np.testing.assert_allclose(length(free), found.gradient_norm, rtol=1e-4)
  np.testing.assert_allclose(length(clipped), 1e-3, rtol=1e-2)
