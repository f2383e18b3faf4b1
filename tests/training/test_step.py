"""The training step: device counts, the methods, the gradient written out by hand, and its compiled form."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lrat_jax import attacks, data, models, reweighting
from lrat_jax.core import hlo, sharding
from lrat_jax.training import gradients, phases
from lrat_jax.training import step as step_lib
from tests.helpers import STEP, make_config, make_experiment, to_numpy

LOCAL = phases.Phase(use_local_weights=True, use_global_weights=False)
BOTH = phases.Phase(use_local_weights=True, use_global_weights=True)
PERTURBED = phases.Phase(use_local_weights=True, use_global_weights=True, use_awp=True)
PLAIN = phases.Phase(use_local_weights=False, use_global_weights=False)

FIELDS = STEP | {
  # For an untrained network, weights differ only on the slope of the curve.
  "local_weights__slope": 2.0,
  "local_weights__bias": -0.2,
  "global_weights__kind": "gairat",
}


def _step(experiment, phase):
  arguments = (
    experiment.config,
    experiment.model,
    experiment.optimizer,
    experiment.total_steps,
    experiment.mesh,
    phase,
  )
  return step_lib.make_train_step(*arguments)


def _lowered(experiment, phase, size=16):
  step = _step(experiment, phase)
  return step.func.lower(*step.args, experiment.initial_state(), _batch(experiment, 0, size))


def _batch(experiment, number, size=16):
  rows = (np.arange(size) + number * size) % len(experiment.dataset.train.labels)
  return sharding.shard_batch(experiment.mesh, experiment.dataset.train.take(rows)._asdict())


def _train(num_devices, phase, steps, shape=(8, 8, 1), arg="digits,suite=pgd", **fields):
  experiment = make_experiment(make_config(arg, **FIELDS | fields), num_devices, shape)
  step, state, outputs = _step(experiment, phase), experiment.initial_state(), []
  for number in range(steps):
    state, output = step(state, _batch(experiment, number))
    outputs.append(to_numpy(output))
  return to_numpy(state), outputs


@pytest.mark.slow
@pytest.mark.parametrize(
  ("model", "objective", "phase", "devices"),
  [
    ("cnn_2", "mart", PERTURBED, (1, 2, 4)),
    ("wide_resnet_10_1", "ce", BOTH, (1, 4)),
    ("xcit_1_16_2_p4", "ce", BOTH, (1, 2)),
    ("swin_2_32_patch1_window4", "ce", BOTH, (1, 2)),
  ],
)
def test_several_devices_train_the_model_of_one(model, objective, phase, devices):
  fields = {"model__name": model, "data__crop_padding": 1, "data__flip": True, "train__ema_decay": 0.9}
  fields |= {"objective": objective, "awp__gamma": 0.01}
  (alone, outputs), *others = (_train(n, phase, steps=5, **fields) for n in devices)
  for state, other_outputs in others:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), state, alone)
    np.testing.assert_allclose(other_outputs[0].global_weights, outputs[0].global_weights, rtol=1e-4)
    np.testing.assert_array_equal(other_outputs[0].indices, outputs[0].indices)
  assert not np.allclose(jax.tree.leaves(alone.variables["params"])[0], jax.tree.leaves(alone.ema["params"])[0])


@pytest.mark.slow
def test_batch_norm_statistics_move_and_stay_finite():
  state, _ = _train(2, LOCAL, steps=2, model__name="wide_resnet_10_1")
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
  batch = _batch(experiment, 0)
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
  after, output = _step(experiment, phase)(before, batch)
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
  _, (output,) = _train(1, LOCAL, steps=1, arg="digits,pgd,cw", local_weights__kind=kind)
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
  state, batch = experiment.initial_state(), _batch(experiment, 0)
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
  after, output = _step(experiment, phase)(state, batch)
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
  after, output = _step(experiment, phase)(state, batch)
  np.testing.assert_allclose(output.loss, loss_fn(there), rtol=1e-4)
  rate = experiment.config.optimizer.learning_rate
  expected = jax.tree.map(lambda p, g: np.asarray(p - rate * g), params, gradient(there))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), to_numpy(after.variables["params"]), expected)


@pytest.mark.slow
def test_one_compiled_program_serves_every_seed_and_each_has_its_own_noise():
  texts, outputs = [], []
  for seed in (0, 1):
    experiment = make_experiment(make_config(**FIELDS | {"seed": seed, "optimizer__learning_rate": 0.0}))
    texts.append(_lowered(experiment, LOCAL).as_text())
    # Both seeds get the same parameters, so that only the attack's random start differs.
    state = make_experiment(make_config(**FIELDS)).initial_state()
    outputs.append(to_numpy(_step(experiment, LOCAL)(state, _batch(experiment, 0))[1]))
  assert texts[0] == texts[1]
  assert np.abs(outputs[0].vulnerabilities - outputs[1].vulnerabilities).max() > 1e-5


@pytest.mark.slow
def test_outputs_follow_the_model():
  fields = {"model__name": "cnn_8", "train_attacks__pgd__epsilon": "0.05"}
  state, outputs = _train(2, LOCAL, steps=60, optimizer__learning_rate=0.03, **fields)
  assert outputs[-1].natural_correct.mean() > 0.9 > outputs[0].natural_correct.mean()
  assert outputs[-1].loss < 0.5 * outputs[0].loss
  np.testing.assert_array_equal(outputs[-1].adversarial_correct, outputs[-1].vulnerabilities <= 0)
  assert state.step == 60


@pytest.mark.slow
def test_epsilon_grows_along_the_ramp():
  """At the first of 100 ramp steps, epsilon is a hundredth, so vulnerability is almost that of the clean image."""
  fields = {"train__epochs": 25, "train__epsilon_ramp_fraction": 1.0, "train_attacks__pgd__epsilon": "0.5"}
  _, (ramped,) = _train(1, PLAIN, steps=1, **fields)
  _, (clean,) = _train(1, PLAIN, steps=1, **fields | {"train_attacks__pgd__epsilon": "0"})
  _, (full,) = _train(1, PLAIN, steps=1, **fields | {"train__epsilon_ramp_fraction": 0.0})
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
  step, state = _step(experiment, LOCAL), experiment.initial_state()
  batch = _batch(experiment, 0)
  reversed_batch = {name: array[::-1] for name, array in batch.items()}
  _, turned = step(experiment.initial_state(), reversed_batch)
  state, first = step(state, batch)
  first = to_numpy(first)
  _, later = step(state, batch)
  np.testing.assert_allclose(turned.vulnerabilities[::-1], first.vulnerabilities, atol=1e-5)
  assert np.abs(later.vulnerabilities - first.vulnerabilities).max() > 1e-4


@pytest.mark.slow
def test_attacks_may_see_the_batchs_own_statistics():
  _, (running,) = _train(1, PLAIN, steps=1, model__name="wide_resnet_10_1")
  _, (own,) = _train(1, PLAIN, steps=1, model__name="wide_resnet_10_1", train__attack_batch_norm="train")
  _, (own_sharded,) = _train(2, PLAIN, steps=1, model__name="wide_resnet_10_1", train__attack_batch_norm="train")
  assert np.abs(own.vulnerabilities - running.vulnerabilities).max() > 1e-4
  np.testing.assert_allclose(own_sharded.vulnerabilities, own.vulnerabilities, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "microbatch_size"), [("eval", 2), ("train", 16)])
def test_attacks_take_few_images_at_a_time_unless_these_share_their_statistics(monkeypatch, mode, microbatch_size):
  fields = {"model__name": "wide_resnet_10_1", "train__attack_batch_norm": mode}
  _, (whole,) = _train(1, BOTH, steps=1, **fields)
  asked, seen = [], set()
  monkeypatch.setattr(models, "microbatch_size", lambda *of, platform: asked.append((*of, platform)) or 2)
  logits_fn = gradients.logits_fn

  def watched(*arguments):
    seeing = logits_fn(*arguments)
    return lambda images: seen.add(len(images)) or seeing(images)

  monkeypatch.setattr(gradients, "logits_fn", watched)
  _, (parts,) = _train(1, BOTH, steps=1, **fields)
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
@pytest.mark.parametrize("model", ["cnn_2", "wide_resnet_10_1"])
def test_the_compiled_attack_loop_holds_no_collective(model):
  experiment = make_experiment(make_config(**FIELDS | {"model__name": model}), num_devices=2)
  text = _lowered(experiment, BOTH).compile().as_text()
  bodies = hlo.loop_bodies(text)
  assert any("conv" in body for body in bodies)  # the attack's loop is among them
  assert hlo.collectives(text) and not any(hlo.collectives(body) for body in bodies)


@pytest.mark.slow
def test_attacks_that_see_the_batchs_statistics_join_them_over_the_devices_at_every_step():
  fields = {"model__name": "wide_resnet_10_1", "train__attack_batch_norm": "train"}
  experiment = make_experiment(make_config(**FIELDS | fields), num_devices=2)
  text = _lowered(experiment, PLAIN).compile().as_text()
  assert any(hlo.collectives(body) for body in hlo.loop_bodies(text))


def _collectives(**fields):
  experiment = make_experiment(make_config(**FIELDS | {"model__name": "wide_resnet_10_1"} | fields), num_devices=2)
  return hlo.collectives(_lowered(experiment, PLAIN).compile().as_text())


@pytest.mark.slow
def test_a_step_with_statistics_per_device_holds_one_collective():
  assert _collectives(model__batch_norm="local") == {"all-reduce": 1}
  assert _collectives(model__batch_norm="local", train__attack_batch_norm="train") == {"all-reduce": 1}
  assert sum(_collectives().values()) > 1


@pytest.mark.slow
def test_a_resnet_18_holds_one_collective_where_it_held_one_for_each_layer_and_pass():
  fields = {"model__name": "resnet18_2"}
  # The means and variances of its 20 batch norms share all-reduces, in the forward and in the backward pass.
  assert _collectives(**fields) == {"all-reduce": 35}
  assert _collectives(**fields, model__batch_norm="local") == {"all-reduce": 1}


@pytest.mark.slow
def test_statistics_per_device_are_of_each_devices_images_and_their_averages_the_mean():
  """On two devices the running averages are the mean over two runs on one device, each on half of the batch."""
  fields = {"model__name": "wide_resnet_10_1", "model__batch_norm": "local", "train_attacks__pgd__epsilon": "0"}
  fields |= {"train__ema_decay": 0.9, "train_attacks__pgd__num_steps": 1}
  config = make_config(**FIELDS | fields)
  experiment = make_experiment(config, num_devices=2)
  state, _ = _step(experiment, PLAIN)(experiment.initial_state(), _batch(experiment, 0))
  for leaf in jax.tree.leaves(state):
    for shard in leaf.addressable_shards[1:]:
      np.testing.assert_array_equal(shard.data, leaf.addressable_shards[0].data)
  alone, halves = make_experiment(config, num_devices=1), []
  for half in (0, 1):
    after, _ = _step(alone, PLAIN)(alone.initial_state(), _batch(alone, half, size=8))
    halves.append(to_numpy(after.variables))
  for tree in ("params", "batch_stats"):
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *(half[tree] for half in halves))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), to_numpy(state.variables[tree]), expected)
  whole = make_experiment(config.copy_and_resolve_references(), num_devices=1)
  together, _ = _step(whole, PLAIN)(whole.initial_state(), _batch(whole, 0))
  differences = jax.tree.map(
    lambda a, b: np.abs(a - b).max(),
    to_numpy(together.variables["batch_stats"]),
    to_numpy(state.variables["batch_stats"]),
  )
  assert max(jax.tree.leaves(differences)) > 1e-4


@pytest.mark.slow
def test_the_norm_that_a_step_tells_is_of_the_gradient_before_it_is_clipped():
  fields = {"optimizer__momentum": 0.0, "optimizer__weight_decay": 0.0, "optimizer__learning_rate": 1.0}
  experiments = [make_experiment(make_config(**FIELDS | fields | {"optimizer__clip_norm": c})) for c in (0.0, 1e-3)]
  (free, found), (clipped, told) = (_step(e, PLAIN)(e.initial_state(), _batch(e, 0)) for e in experiments)
  before = experiments[0].initial_state().variables["params"]
  length = lambda state: optax.tree.norm(optax.tree.sub(state.variables["params"], before))
  np.testing.assert_array_equal(told.gradient_norm, found.gradient_norm)
  np.testing.assert_allclose(length(free), found.gradient_norm, rtol=1e-4)
  np.testing.assert_allclose(length(clipped), 1e-3, rtol=1e-2)


@pytest.mark.slow
def test_what_depends_on_the_model_alone_is_taken_out_of_the_attacks_loop():
  experiment = make_experiment(make_config(**FIELDS | {"model__name": "wide_resnet_10_2"}), shape=(8, 8, 3))
  attack_loop = max(hlo.loop_bodies(_lowered(experiment, LOCAL).compile().as_text()), key=len)
  # A square root would be that of the folded batch norm; a product with 9 rows, the transform of a 3x3 kernel.
  assert "rsqrt" not in attack_loop
  assert not re.search(r"dot\(.*\[9,", attack_loop)


def test_a_step_needs_no_transfer_beyond_its_batch():
  experiment = make_experiment(make_config(**FIELDS), num_devices=2)
  for placement in ("device", "host"):
    place = data.make_device_put(experiment.dataset.train, experiment.mesh, placement)
    batches = data.train_batches(experiment.dataset.train, 16, 0, place)
    step, state = _step(experiment, BOTH), experiment.initial_state()
    with jax.transfer_guard("disallow"):
      for _ in range(3):
        state, output = step(state, next(batches))
    assert np.isfinite(sharding.fetch(output.loss))
