"""The examples of a user-defined attack, weighting, network and data set: each runs in full and does what it says."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from examples import custom_attack, custom_weighting
from lrat_jax import attacks, data, main, models, reweighting
from lrat_jax.analysis import inspection
from lrat_jax.core import sharding

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TINY = ["--config.train.epochs=1", "--config.train.log_every_steps=2", "--config.data.train_size=128"]
TINY += [
  "--config.local_weights.begin_fraction=0.0",
  "--config.global_weights.begin_fraction=0.0",
  "--config.validation_attack.num_steps=1",
]
TINY += ["--config.eval.batch_size=128", "--config.train_attacks.pgd.num_steps=2"]
EVALUATED = [
  "--config.eval.num_images=64",
  "--config.eval.num_sanity_examples=0",
  "--config.eval.suite.mi_fgsm.num_steps=3",
]
EVALUATED += ["--config.eval.suite.pgd20.num_steps=1", "--config.eval.suite.cw20.num_steps=1"]
RADIUS = {"epsilon": 0.1, "step_size": 0.03}


def _commands(name):
  """The arguments of each `python -m lrat_jax.main` command in the docstring of an example."""
  lines = (ROOT / "examples" / f"{name}.py").read_text().split('"""')[1].splitlines()
  commands = [line.partition("   ")[0] for line in lines if line.startswith("python -m lrat_jax.main ")]
  return [command.split()[3:] for command in commands]


def _run(command, workdir, *more):
  """Runs a command with few steps; returns the last row of training metrics and the recorded weights of its epoch."""
  assert main.main([*command, *TINY, *more, f"--workdir={workdir}"]) == 0
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  with np.load(workdir / "weights" / "epoch_0000.npz") as recorded:
    return [row for row in rows if row["split"] == "train"][-1], dict(recorded)


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)


def test_the_command_of_the_attack_and_the_configuration_trains_and_evaluates_with_both(tmp_path):
  (command,) = _commands("custom_config")
  assert [command] == _commands("custom_attack")
  own = ["--config.train_attacks.mi_fgsm.num_steps=2", "--config.model.name=cnn_2"]
  _, recorded = _run(command, tmp_path, *own, *EVALUATED)
  assert recorded["variants"].tolist() == ["mi_fgsm", "pgd"]
  options = {"total": 1.0, "minimum_natural": 0.1, "slope": 1.0, "bias": 0.0}
  natural, adversarial = custom_weighting.linear(recorded["vulnerabilities"], **options)
  np.testing.assert_allclose(recorded["natural_weights"], natural, atol=1e-6)
  np.testing.assert_allclose(recorded["adversarial_weights"], adversarial, atol=1e-6)
  results = json.loads((tmp_path / "results.json").read_text())
  assert list(results["robust"]) == ["apgd", "cw20", "mi_fgsm", "pgd20"]
  assert results["robust"]["mi_fgsm"] <= results["clean"] and results["threat_models"]["mi_fgsm"]["value"] == 0.2


def test_the_commands_of_the_weightings_train_with_them(tmp_path):
  inside, across = _commands("custom_weighting")
  row, _ = _run(inside, tmp_path / "inside", "--mode=train", "--config.model.name=cnn_2")
  assert row["natural_weights/q05"] < 0.11 and row["adversarial_weights/q95"] > 0.99  # the default slope and bias
  row, recorded = _run(across, tmp_path / "across", "--mode=train", "--config.model.name=cnn_2")
  assert np.ptp(recorded["global_weights"]) > 0.1 and recorded["global_weights"].max() <= 2
  assert recorded["global_weights"].mean() == pytest.approx(1, abs=1e-5)


def test_the_command_of_the_network_trains_it(tmp_path):
  (command,) = _commands("custom_model")
  row, _ = _run(command, tmp_path, "--mode=train")
  assert row["loss"] < 5
  assert inspection.load_experiment(tmp_path, trust_user_code=True).model.network.axis_name == sharding.AXIS


def test_the_command_of_the_data_set_trains_on_it(tmp_path):
  (command,) = _commands("custom_data")
  _, recorded = _run(command, tmp_path, "--mode=train", "--config.model.name=cnn_2")
  assert set(recorded["labels"]) == {0, 1} and len(recorded["labels"]) == 128


@pytest.fixture(scope="module")
def mi_fgsm(cnn_logits):
  """The example, built from a configuration, on the small network, compiled: (keys, images, labels) -> AttackResult."""
  entry = {"name": "examples.custom_attack:mi_fgsm", "epsilon": "0.1", "step_size": "0.03", "num_steps": 5}
  attack = attacks.from_config(entry)
  return jax.jit(lambda keys, images, labels: attack(keys, cnn_logits, images, labels))


def test_momentum_keeps_what_every_attack_keeps(mi_fgsm, keys, images, cnn_logits):
  labels = cnn_logits(images).argmax(axis=1)
  whole = mi_fgsm(keys, images, labels)
  assert jnp.max(jnp.abs(whole.images - images)) <= 0.1 + 1e-6
  assert whole.images.min() >= 0 and whole.images.max() <= 1 and whole.surviving_steps.dtype == jnp.int32
  assert (cnn_logits(whole.images).argmax(axis=1) != labels).any()
  order = jnp.array([9, 2, 5])
  np.testing.assert_allclose(mi_fgsm(keys[order], images[order], labels[order]).images, whole.images[order], atol=1e-5)
  specs = PartitionSpec(sharding.AXIS)
  sharded = jax.jit(jax.shard_map(mi_fgsm, mesh=sharding.make_mesh(2), in_specs=specs, out_specs=specs))
  np.testing.assert_allclose(sharded(keys, images, labels).images, whole.images, atol=1e-5)
  gradient = jax.grad(lambda x: mi_fgsm(keys, x, labels).images.sum())(images)
  np.testing.assert_array_equal(gradient, 0.0)


def test_without_momentum_it_is_pgd(keys, images, labels, linear_logits):
  result = custom_attack.mi_fgsm(keys, linear_logits, images, labels, num_steps=4, decay=0.0, **RADIUS)
  pgd = attacks.pgd(keys, linear_logits, images, labels, num_steps=4, **RADIUS)
  np.testing.assert_allclose(result.images, pgd.images, atol=1e-6)
  np.testing.assert_array_equal(result.surviving_steps, pgd.surviving_steps)


def test_momentum_is_dong_et_als(images, labels, keys):
  """Compares with a loop over their equations 6 and 7 in NumPy, on logits that are quadratic in the image."""
  weights = np.random.default_rng(3).normal(size=(64, 5)).astype(np.float32)
  logits_fn = lambda x: (x.reshape(x.shape[0], -1) ** 2) @ weights
  arguments = {"num_steps": 3, "decay": 0.7, **RADIUS}
  found = custom_attack.mi_fgsm(keys, logits_fn, images, labels, **arguments).images
  originals = np.asarray(images).reshape(16, -1)
  linf = attacks.get_norm("linf")
  points = np.asarray(attacks.starting_points("uniform", keys, images, 0.1, linf)).reshape(16, -1)
  momentum = np.zeros_like(points)
  for _ in range(3):
    logits = points**2 @ weights
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    gradient = 2 * points * ((p - np.eye(5)[np.asarray(labels)]) @ weights.T)
    momentum = 0.7 * momentum + gradient / np.abs(gradient).sum(axis=1, keepdims=True)
    points = np.clip(np.clip(points + 0.03 * np.sign(momentum), originals - 0.1, originals + 0.1), 0, 1)
  np.testing.assert_allclose(np.asarray(found).reshape(16, -1), points, atol=1e-5)


def test_linear_weights_touch_lrats_curve_and_sum_to_the_total():
  options = {"total": 2.0, "minimum_natural": 0.05, "slope": 3.0, "bias": 0.1}
  near = jnp.array([[0.1, 0.11], [0.09, 0.1]])
  for own, lrat in zip(
    custom_weighting.linear(near, **options), reweighting.local_weights(near, **options), strict=True
  ):
    np.testing.assert_allclose(own, lrat, atol=1e-3)
  natural, adversarial = custom_weighting.linear(jnp.array([[-1.0, 1.0], [-1.0, -1.0], [1.0, 1.0]]), **options)
  np.testing.assert_allclose(adversarial, [[0, 1], [0, 0], [1, 1]])
  np.testing.assert_allclose(natural, [1, 2, 0.05], rtol=1e-6)


def test_pairs_that_fall_soon_weigh_up_to_twice_as_much():
  fractions = jnp.array([[0.0], [0.5], [1.0]])
  weigh = functools.partial(reweighting.global_weights, custom_weighting.soon_fooled)
  weights = weigh(vulnerabilities=jnp.zeros((3, 1)), surviving_fractions=fractions)
  np.testing.assert_allclose(weights, [4 / 3, 1, 2 / 3], rtol=1e-6)


def test_the_network_is_a_classifier_with_batch_norm():
  model = models.create("examples.custom_model:make_network", 7, dtype="bfloat16", mean=(0.5,), std=(0.25,))
  images = jnp.ones((2, 8, 8, 3))
  variables = model.init(jax.random.key(0), images)
  logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
  assert logits.shape == (2, 7) and logits.dtype == jnp.float32 and set(updated) == {"batch_stats"}
  shifted = model.copy(mean=(0.0,), std=(1.0,)).apply(variables, (images - 0.5) / 0.25)
  np.testing.assert_allclose(model.apply(variables, images), shifted, atol=1e-5)


def test_the_data_set_is_the_digits_odd_and_even():
  dataset = data.load("examples.custom_data:odd_or_even", validation_size=197)
  counts = [len(dataset.split(name).labels) for name in ("train", "validation", "test")]
  assert counts == [1100, 197, 500] and dataset.num_classes == 2 and dataset.image_shape == (8, 8, 1)
  digits = data.load("digits", validation_size=197)
  whole = [np.concatenate([digits.split(name)[i] for name in data.SPLITS]) for i in (0, 1)]
  parity = {image.tobytes(): label % 2 for image, label in zip(*whole, strict=True)}
  assert all(parity[image.tobytes()] == label for image, label in zip(*dataset.test[:2], strict=True))


def test_the_configuration_is_the_default_with_what_it_says():
  spec = importlib.util.spec_from_file_location("custom_config", ROOT / "examples" / "custom_config.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config("cifar10,cw")
  assert list(config.train_attacks) == ["cw", "mi_fgsm"] and config.train_attacks.mi_fgsm.epsilon == "8/255"
  assert config.train_attacks.mi_fgsm.num_steps == 10 and config.eval.suite.mi_fgsm.num_steps == 20
  assert config.name == "mine_cifar10_cw" and config.local_weights.total == 1.0
