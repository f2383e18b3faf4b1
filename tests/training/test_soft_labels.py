"""Labels that are distributions, in a training step: one-hot, smoothed, and those of mixed images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lrat_jax import data, main
from lrat_jax.core import sharding
from lrat_jax.training import experiment as experiment_lib
from lrat_jax.training import phases
from lrat_jax.training import step as step_lib
from tests.helpers import SMALL, STEP, make_config, make_experiment, to_numpy

PHASE = phases.Phase(use_local_weights=True, use_global_weights=True)
PLAIN = phases.Phase(use_local_weights=False, use_global_weights=False)
FIELDS = STEP | {"global_weights__kind": "mail"}


@functools.cache
def _digits():
  return data.load("digits", validation_size=197)


def _steps(experiment, phase, count, labels=lambda labels: labels):
  """The state after `count` steps and their outputs; `labels` converts the labels of the data."""
  arguments = (experiment.config, experiment.model, experiment.optimizer, experiment.total_steps, experiment.mesh)
  step, state, outputs = step_lib.make_train_step(*arguments, phase), experiment.initial_state(), []
  size, train = experiment.config.data.batch_size, experiment.dataset.train
  for number in range(count):
    batch = train.take((np.arange(size) + number * size) % len(train.labels))
    batch = batch._replace(labels=labels(batch.labels))
    state, output = step(state, sharding.shard_batch(experiment.mesh, batch._asdict()))
    outputs.append(to_numpy(output))
  return to_numpy(state), outputs


def _one_hot(labels, num_classes=10):
  return np.eye(num_classes, dtype=np.float32)[labels]


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize(("arg", "objective"), [("pgd", "ce"), ("pgd,cw", "trades"), ("pgd", "mart")])
def test_one_hot_labels_in_a_batch_give_the_steps_of_hard_ones(num_devices, arg, objective):
  experiment = experiment_lib.build(
    make_config(f"digits,{arg},suite=pgd", **FIELDS, objective=objective), _digits(), sharding.make_mesh(num_devices)
  )
  (hard, outputs), (soft, soft_outputs) = _steps(experiment, PHASE, 4), _steps(experiment, PHASE, 4, _one_hot)
  # This is a different program, which a compiler may round differently; a run uses the same one (next test).
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, (soft, soft_outputs), (hard, outputs))


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_run_on_one_hot_labels_is_that_on_hard_ones_to_the_bit(num_devices):
  config, mesh, given = make_config(**FIELDS), sharding.make_mesh(num_devices), _digits()
  one_hot = {name: s._replace(labels=_one_hot(s.labels)) for name, s in given._asdict().items() if name in data.SPLITS}
  hard, soft = (experiment_lib.build(config, dataset, mesh) for dataset in (given, given._replace(**one_hot)))
  for name in data.SPLITS:
    jax.tree.map(np.testing.assert_array_equal, soft.dataset.split(name), hard.dataset.split(name))
  jax.tree.map(np.testing.assert_array_equal, _steps(soft, PHASE, 3), _steps(hard, PHASE, 3))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["ce", "trades"])
def test_smoothed_and_given_distributions_are_what_the_loss_is_taken_from(objective):
  """Compares with the loss written out, at a radius of 0, where every variant equals its image."""
  fields = FIELDS | {"train_attacks__pgd__epsilon": "0", "objective": objective, "train__label_smoothing": 0.2}
  experiment = make_experiment(make_config(**fields))
  generator = np.random.default_rng(0)
  given = generator.dirichlet(np.ones(4), size=16).astype(np.float32)
  given[:, 0] += 0.3
  given /= given.sum(axis=1, keepdims=True)
  _, (output,) = _steps(experiment, PLAIN, 1, lambda _: given)
  state, images = experiment.initial_state(), experiment.dataset.train.images[:16]
  logits = experiment.model.apply(state.variables, jnp.asarray(images), train=True, mutable=["batch_stats"])[0]
  expected = optax.softmax_cross_entropy(logits, 0.8 * given + 0.05)
  np.testing.assert_allclose(output.loss, np.mean(expected), rtol=1e-5)
  np.testing.assert_array_equal(output.labels, given.argmax(axis=1))
  correct = logits.argmax(axis=1) == given.argmax(axis=1)
  np.testing.assert_array_equal(output.adversarial_correct[:, 0], correct)


@pytest.mark.slow
def test_smoothing_is_hidden_from_the_attack_and_given_distributions_are_not():
  fields = FIELDS | {"optimizer__learning_rate": 0.0, "train_attacks__pgd__epsilon": "0.5"}
  of = lambda labels=lambda labels: labels, **more: _steps(
    make_experiment(make_config(**fields | more)), PLAIN, 1, labels
  )[1][0]
  hard = of()
  np.testing.assert_array_equal(of(train__label_smoothing=0.3).vulnerabilities, hard.vulnerabilities)
  halves = lambda labels: 0.6 * _one_hot(labels, 4) + 0.4 * _one_hot((labels + 1) % 4, 4)
  mixed = of(halves)
  np.testing.assert_array_equal(mixed.labels, hard.labels)
  assert np.abs(mixed.vulnerabilities - hard.vulnerabilities).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mixing", [{"data__cutmix": 1.0}, {"data__mixup": 0.4, "data__cutmix": 1.0}])
def test_mixed_images_train_the_same_model_on_any_number_of_devices(mixing):
  fields = FIELDS | mixing | {"data__flip": True, "train__label_smoothing": 0.1}
  (state, outputs), *others = (_steps(make_experiment(make_config(**fields), n), PHASE, 3) for n in (1, 2, 4))
  for other, other_outputs in others:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), other, state)
    for a, b in zip(other_outputs, outputs, strict=True):
      np.testing.assert_array_equal(a.labels, b.labels)
      np.testing.assert_allclose(a.vulnerabilities, b.vulnerabilities, atol=1e-4)
  plain = make_experiment(make_config(**FIELDS)).dataset.train.labels[:16]
  changed = outputs[0].labels != plain
  assert changed.any() and not changed.all()
  np.testing.assert_array_equal(outputs[0].labels[changed], np.roll(plain, -1)[changed])  # that of the larger share


@pytest.mark.slow
def test_a_data_set_of_distributions_is_trained_on_and_evaluated_by_its_classes(tmp_path):
  splits, arrays = (_digits().train, _digits().test), {}
  for name, split in zip(("train", "test"), splits, strict=True):
    arrays |= {f"{name}_images": split.images[:300], f"{name}_labels": 0.8 * _one_hot(split.labels[:300]) + 0.02}
  np.savez(tmp_path / "soft.npz", **arrays)
  for part in (1, 2):
    images = np.round(255 * splits[0].images[50 * part : 50 * part + 50]).astype(np.uint8)
    np.savez(tmp_path / f"part{part}.npz", image=images, label=arrays["train_labels"][50 * part : 50 * part + 50])
  fields = SMALL | {"train.epochs": 1, "data.batch_size": 32, "data.validation_size": 60, "eval.num_images": 100}
  fields |= {"data.source": f"npz:{tmp_path}/soft.npz", "data.extra.source": f"npz:{tmp_path}/part?.npz"}
  arguments = ["--config=at:digits,suite=pgd", *(f"--config.{name}={value}" for name, value in fields.items())]
  on_train = ["--mode=evaluate", "--config.eval.split=train"]
  for split, folder, more in (("test", ".", []), ("train", "train", on_train)):
    assert main.main([*arguments, f"--workdir={tmp_path}/run", *more]) == 0
    with np.load(tmp_path / "run" / folder / "per_example.npz") as evaluated:
      expected = arrays[f"{split}_labels"].argmax(axis=1)[evaluated["indices"]]
      np.testing.assert_array_equal(evaluated["labels"], expected)
