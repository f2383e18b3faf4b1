"""Inspection: weights are aligned by instance and are those of training; comparisons of attacks match hand counts."""

import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console
from scipy import stats

from lrat_jax import attacks
from lrat_jax.analysis import inspection
from lrat_jax.training import loop
from lrat_jax.training import step as step_lib
from tests.helpers import make_config, make_experiment, make_split, to_numpy

NAN = np.nan


def _write_epoch(workdir, epoch, rows):
  """`rows`: {index: (label, [adversarial weights], global weight)} or such pairs; natural is 1 - sum(adversarial)."""
  rows = list(rows.items()) if isinstance(rows, dict) else rows
  labels, adversarial, across = (np.array(column) for column in zip(*(row for _, row in rows), strict=True))
  (workdir / "weights").mkdir(exist_ok=True)
  np.savez(
    workdir / "weights" / f"epoch_{epoch:04d}.npz",
    variants=np.array(["cw", "pgd"]),
    step=np.arange(len(rows)),
    indices=np.array([index for index, _ in rows]),
    labels=labels,
    natural_weights=1 - adversarial.sum(axis=1),
    adversarial_weights=adversarial,
    global_weights=across,
    vulnerabilities=adversarial - 0.5,
  )


def _history(natural, **fields):
  """A history with these natural weights [e, k]; other fields that are not given do not matter."""
  natural = np.array(natural, float)
  epochs, count = natural.shape
  given = {
    "epochs": np.arange(epochs),
    "indices": 10 * (1 + np.arange(count)),
    "labels": np.arange(count) % 2,
    "variants": np.array(["cw", "pgd"]),
    "natural": natural,
    "adversarial": np.stack([(1 - natural) / 4, 3 * (1 - natural) / 4], axis=-1),
    "across": np.ones_like(natural),
    "vulnerabilities": np.zeros((epochs, count, 2)),
  }
  return inspection.WeightHistory(**given | fields)


def test_weights_are_aligned_by_instance_whatever_the_order_of_their_batches(tmp_path):
  _write_epoch(tmp_path, 0, {7: (1, [0.2, 0.3], 1.5), 3: (0, [0.1, 0.1], 0.5)})
  _write_epoch(tmp_path, 10, {3: (0, [0.4, 0.4], 0.1), 9: (2, [0.0, 0.5], 0.9), 7: (1, [0.3, 0.0], 2.0)})
  _write_epoch(tmp_path, 2, [(9, (2, [0.5, 0.5], 1.0)), (3, (0, [0.0, 0.0], 0.3)), (9, (2, [0.1, 0.2], 0.7))])
  history = inspection.weight_history(tmp_path)
  assert history.epochs.tolist() == [0, 2, 10] and history.variants.tolist() == ["cw", "pgd"]
  assert history.indices.tolist() == [3, 7, 9] and history.labels.tolist() == [0, 1, 2]
  np.testing.assert_allclose(history.natural, [[0.8, 0.5, NAN], [1.0, NAN, 0.7], [0.2, 0.7, 0.5]])
  np.testing.assert_allclose(history.across, [[0.5, 1.5, NAN], [0.3, NAN, 0.7], [0.1, 2.0, 0.9]])
  np.testing.assert_allclose(history.adversarial[1], [[0.0, 0.0], [NAN, NAN], [0.1, 0.2]])  # index 9: the last of two
  np.testing.assert_allclose(inspection.values(history, "adversarial/pgd")[:, 1], [0.3, NAN, 0.0])
  np.testing.assert_allclose(inspection.values(history, "vulnerability/cw")[2], [-0.1, -0.2, -0.5])


def test_what_is_not_there_is_one_line(tmp_path):
  with pytest.raises(ValueError, match=r"^workdir='.*' contains no weights/epoch_\*.npz; train there.*$"):
    inspection.weight_history(tmp_path)
  with pytest.raises(ValueError, match=r"^workdir='.*' contains no config.json; train there first.$"):
    inspection.evaluate(tmp_path)
  with pytest.raises(ValueError, match=r"^split='all' is unknown; choose from \['test', 'validation', 'train'\].$"):
    inspection.evaluate(tmp_path, split="all")
  with pytest.raises(ValueError, match=r"^field='adversarial/fgsm' is unknown; choose from \['across', .*'natural'"):
    inspection.values(_history([[0.5]]), "adversarial/fgsm")
  with pytest.raises(ValueError, match=r"^index 99 is not one of the split's 8 indices.$"):
    inspection.look_up(make_split(8), [3, 99])


def test_quantiles_are_those_of_the_instances_that_are_there():
  generator = np.random.default_rng(0)
  natural = generator.uniform(size=(3, 40))
  natural[1, ::3] = NAN
  natural[2, 1::2] = NAN  # all of class 1
  history = _history(natural, vulnerabilities=generator.uniform(-1, 1, (3, 40, 2)))
  found = inspection.by_class(history)
  assert found.groups.tolist() == [0, 1] and found.quantiles.shape == (3, 2, 5)
  for label in (0, 1):
    expected = np.nanquantile(natural[:2, label::2], [0.05, 0.25, 0.5, 0.75, 0.95], axis=1).T
    np.testing.assert_allclose(found.quantiles[:2, label], expected)
  assert np.isnan(found.quantiles[2, 1]).all() and np.isfinite(found.quantiles[2, 0]).all()
  by_attack = inspection.by_attack(history, "vulnerability")
  assert by_attack.groups.tolist() == ["cw", "pgd"]
  np.testing.assert_allclose(by_attack.quantiles[1, 1, 2], np.median(history.vulnerabilities[1, :, 1]))


def test_movement_counts_from_where_reweighting_begins_and_over_gaps():
  history = _history(
    [  # all jump when reweighting begins; then: constant, back and forth, increasing, missing in two epochs
      [0.0, 0.0, 0.0, 0.0],
      [0.0, 0.0, 0.0, NAN],
      [0.9, 0.2, 0.1, 0.5],
      [0.9, 0.5, 0.2, NAN],
      [0.9, 0.2, 0.5, 0.3],
    ],
    across=np.array([[1.0] * 4] * 4 + [[1.0, 1.0, 1.0, 4.0]]),
  )
  assert inspection.first_difference(history) == 2 and inspection.first_difference(history, "across") == 4
  moved = inspection.most_moved(history, 3)
  assert moved.columns.tolist() == [1, 2, 3] and moved.indices.tolist() == [20, 30, 40]
  np.testing.assert_allclose(moved.movement, [0.6, 0.4, 0.2])
  np.testing.assert_allclose(inspection.most_moved(history, 9).movement[-1], 0)
  assert inspection.first_difference(_history(np.full((3, 4), 0.5))) is None


def test_instances_are_looked_up_by_their_index():
  split = make_split(20).take(np.array([4, 2, 9, 17]))
  found = inspection.look_up(split, np.array([17, 4]))
  assert found.indices.tolist() == [17, 4] and found.labels.tolist() == [1, 0]
  np.testing.assert_array_equal(found.images, make_split(20).images[[17, 4]])


def _per_example(clean, **attacked):
  """`attacked`: name -> vulnerabilities [n]; robust means correct when clean, and a vulnerability of at most 0."""
  arrays = {"clean_correct": np.array(clean, bool)}
  for name, scores in attacked.items():
    arrays[f"vulnerability/{name}"] = np.array(scores, np.float32)
    arrays[f"robust/{name}"] = arrays["clean_correct"] & (arrays[f"vulnerability/{name}"] <= 0)
  return arrays


def test_cross_table_against_a_hand_count():
  per_example = _per_example(
    [1, 1, 1, 1, 1, 0],
    a=[0.5, 0.4, 0.3, -0.1, -0.2, 0.9],
    b=[0.1, -0.3, -0.2, 0.6, -0.4, -0.9],
  )
  found = inspection.inconsistency(per_example)
  assert found.names == ["a", "b"] and found.count == 5  # the sixth is misclassified when clean
  np.testing.assert_allclose(found.broken, [3 / 5, 2 / 5])
  np.testing.assert_allclose(found.cross, [[0, 2 / 5], [1 / 5, 0]])  # only by a: second, third; only by b: fourth
  np.testing.assert_array_equal(inspection.vulnerabilities(per_example, ["b"])[:, 0], per_example["vulnerability/b"])


def test_rank_correlations_are_spearmans_of_the_instances_that_are_right():
  generator = np.random.default_rng(1)
  shared, clean = generator.normal(size=200), generator.uniform(size=200) < 0.8
  columns = {
    "a": np.tanh(shared),
    "b": np.tanh(shared + generator.normal(size=200)).round(1),  # with ties
    "c": np.tanh(-(shared**3) / 9),
    "flat": np.full(200, -0.25),
  }
  found = inspection.inconsistency(_per_example(clean, **columns))
  for i, one in enumerate(["a", "b", "c"]):
    for j, other in enumerate(["a", "b", "c"]):
      scores = (np.float32(columns[name])[clean] for name in (one, other))
      np.testing.assert_allclose(found.rank_correlation[i, j], stats.spearmanr(*scores).statistic, atol=1e-9)
  assert np.isnan(found.rank_correlation[3]).all() and np.isnan(found.rank_correlation[:, 3]).all()
  assert inspection.least_correlated(found) == (0, 2)
  flat = inspection.inconsistency(_per_example([1, 1], a=[0.5, 0.5], b=[-0.1, -0.1]))
  assert inspection.least_correlated(flat) is None and np.isnan(flat.rank_correlation).all()


def test_autoattack_is_left_out_unless_it_is_named():
  per_example = _per_example([1, 1, 1], a=[0.1, 0.2, -0.1], autoattack=[0.1, -0.9, -0.8], b=[0.3, 0.1, -0.5])
  per_example |= {"broken_by/autoattack": np.array([1, 0, 0]), "stages/autoattack": np.array(["clean", "apgd-ce"])}
  assert inspection.inconsistency(per_example).names == ["a", "b"]
  assert inspection.vulnerabilities(per_example).shape == (3, 2)
  named = inspection.inconsistency(per_example, ["autoattack", "a"])
  np.testing.assert_allclose(named.cross, [[0, 0], [1 / 3, 0]])


@pytest.mark.parametrize(
  ("clean", "names", "message"),
  [
    ([1, 1], ["a", "jpeg"], r"^attack 'jpeg' was not evaluated; choose from \['a', 'b'\].$"),
    ([1, 1], ["a"], r"^names=\['a'\]: .*two or more.$"),
    ([0, 0], None, r"^none of the 2 clean instances is classified correctly, .*$"),
  ],
)
def test_attacks_that_cannot_be_compared_are_one_line(clean, names, message):
  with pytest.raises(ValueError, match=message):
    inspection.inconsistency(_per_example(clean, a=[0.1, 0.2], b=[0.2, 0.1]), names)


def test_a_checkpoint_is_evaluated_as_the_program_evaluates_it(finished):
  """With the run's own suite, the arrays equal those of per_example.npz; with fewer images, their first rows."""
  per_example = inspection.evaluate(finished, num_images=80)
  with np.load(finished / "per_example.npz") as saved:
    assert set(saved.files) == set(per_example)
    for name in ("indices", "labels", "clean_correct", "robust/pgd20", "robust/fgsm"):
      np.testing.assert_array_equal(per_example[name], saved[name][:80])
    np.testing.assert_allclose(
      inspection.vulnerabilities(per_example), inspection.vulnerabilities(saved)[:80], atol=1e-5
    )


def test_a_checkpoint_is_evaluated_on_any_split_by_any_attacks(finished):
  still = {"name": "pgd", "norm": "l2", "epsilon": "0", "step_size": "0.1", "num_steps": 1}
  per_example = inspection.evaluate(finished, {"still": still, "far": still | {"epsilon": "1"}}, split="train")
  assert inspection.attack_names(per_example) == ["still", "far"] and len(per_example["labels"]) == 1100
  assert inspection.vulnerabilities(per_example, ["still"])[:, 0] == pytest.approx(per_example["vulnerability/clean"])
  assert per_example["robust/far"].mean() < per_example["clean_correct"].mean()
  history = inspection.weight_history(finished)
  assert len(history.indices) == 1100 and set(history.indices) <= set(per_example["indices"])
  with pytest.raises(ValueError, match=r"^suite='slow' is unknown; choose from \['apgd', 'autoattack', "):
    inspection.evaluate(finished, "slow")


def test_a_suite_by_name_has_the_radii_of_the_preset_that_made_the_run(finished, tmp_path):
  per_example = inspection.evaluate(finished, "pgd", num_images=4)
  assert {"robust/pgd20", "robust/cw20"} <= set(per_example)
  copy = tmp_path / "copy"
  shutil.copytree(finished, copy)
  content = json.loads((copy / "config.json").read_text())
  content["run"]["preset"] = "somewhere/own.py:digits"
  (copy / "config.json").write_text(json.dumps(content))
  with pytest.raises(ValueError, match=r"^suite='full' has no radii for a run of --config=somewhere/own.py:digits"):
    inspection.evaluate(copy, "full")


@pytest.mark.slow
def test_the_weights_that_training_used_are_those_that_inspection_shows(tmp_path):
  """Compares one SGD step of the training loop with the same step by hand, with the weights read from disk."""
  fields = {
    "data__batch_size": 16, "model__name": "cnn_2", "train__epochs": 1, "train__epsilon_ramp_fraction": 0.0,
    "train_attacks__pgd__num_steps": 2, "train_attacks__cw__num_steps": 3, "validation_attack__num_steps": 1,
    "optimizer__schedule": "constant", "optimizer__momentum": 0.0, "optimizer__weight_decay": 0.01,
    "local_weights__kind": "lrat", "local_weights__begin_fraction": 0.0,
    # For an untrained network, weights differ only on the slope of the curve.
    "local_weights__slope": 2.0, "local_weights__bias": -0.2,
    "global_weights__kind": "gairat", "global_weights__begin_fraction": 0.0,
  }  # fmt: skip
  config = make_config("digits,pgd,cw", **fields)
  experiment = make_experiment(config, count=16)
  params = to_numpy(experiment.initial_state().variables["params"])
  loop.train(experiment, tmp_path, Console(file=io.StringIO()))
  step, after = loop.load_checkpoint(experiment, tmp_path)
  history = inspection.weight_history(tmp_path)
  assert step == 1 and history.indices.tolist() == list(range(16)) and history.variants.tolist() == ["cw", "pgd"]
  assert np.ptp(history.natural[0]) > 0.01 and np.ptp(history.across[0]) > 0.1

  split = inspection.look_up(experiment.dataset.train, history.indices)
  logits = jax.jit(lambda p, x: experiment.model.apply({"params": p}, x))
  keys = attacks.example_keys(jax.random.fold_in(step_lib.stream_key(0, "attack"), 0), jnp.asarray(split.indices))
  inputs = [split.images]
  for j, (attack, steps) in enumerate(((attacks.cw, 3), (attacks.pgd, 2))):
    variant_keys = jax.vmap(lambda k, j=j: jax.random.fold_in(k, j))(keys)
    budget = {"epsilon": 0.2, "step_size": 0.05, "num_steps": steps}
    run = jax.jit(lambda k, x, y, a=attack, b=budget: a(k, lambda z: logits(params, z), x, y, **b).images)
    inputs.append(run(variant_keys, split.images, split.labels))

  def parameters_with(weights):
    """params - lr (gradient + weight decay * params), with weights [3, 16] of the natural images and the variants."""

    def loss_fn(p):
      losses = [optax.softmax_cross_entropy_with_integer_labels(logits(p, x), split.labels) for x in inputs]
      return jnp.mean(sum(w * loss for w, loss in zip(weights, losses, strict=True)))

    rate, decay = config.optimizer.learning_rate, config.optimizer.weight_decay
    return jax.tree.map(lambda p, g: p - rate * (g + decay * p), params, jax.jit(jax.grad(loss_fn))(params))

  def largest_error(weights):
    errors = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.variables["params"], parameters_with(weights))
    return max(jax.tree.leaves(errors))

  shown = history.across[0] * np.stack([history.natural[0], *history.adversarial[0].T])
  assert largest_error(shown) < 1e-5
  # Weights of other instances, of the other variant, or without the global weights give another step.
  for wrong in (np.roll(shown, 1, axis=1), shown[[0, 2, 1]], shown / history.across[0]):
    assert largest_error(wrong) > 1e-4
