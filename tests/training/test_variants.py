"""Variants made by all training attacks, or by one drawn for each batch: the draw, its record, and resumed runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lrat_jax import attacks
from lrat_jax.config import methods, validate
from lrat_jax.core import sharding
from lrat_jax.core.errors import Preempted
from lrat_jax.training import checkpoints, metrics, phases, variants
from lrat_jax.training import loop as loop_lib
from lrat_jax.training import step as step_lib
from tests.helpers import SMALL, make_config, make_experiment, to_numpy

UNION = ["at:digits,union", "max:digits", "softmax:digits", "at:digits,msd", "eat:digits", "lrat:digits,union"]
SAMPLED = {"train__variants": "sampled", "data__batch_size": 16, "model__name": "cnn_2"}


def _make(preset, **fields):
  """A small configuration of a method, with two steps for every attack."""
  config = methods.get_config(f"{preset},suite=pgd")
  given = {name: value for name, value in SMALL.items() if not name.startswith("train_attacks")} | {
    "model.name": "cnn_2", "data.batch_size": 16, "local_weights.begin_fraction": 0.0, "train.num_logged_examples": 4,
    **{f"train_attacks.{name}.num_steps": 2 for name in config.train_attacks}, **fields,
  }  # fmt: skip
  config.update_from_flattened_dict(given)
  validate.check(config)
  return config


def _run(experiment, steps):
  phase = phases.phase_at(experiment.config, experiment.config.train.epochs - 1)
  arguments = (experiment.config, experiment.model, experiment.optimizer, experiment.total_steps, experiment.mesh)
  step, state, outputs = step_lib.make_train_step(*arguments, phase), experiment.initial_state(), []
  for number in range(steps):
    rows = (np.arange(16) + number * 16) % len(experiment.dataset.train.labels)
    state, output = step(state, sharding.shard_batch(experiment.mesh, experiment.dataset.train.take(rows)._asdict()))
    outputs.append(to_numpy(output))
  return to_numpy(state), outputs


def test_attacks_are_drawn_alike_until_each_was_and_then_by_their_errors():
  unknown = variants.Sampling(jnp.array([0.9, 0.2, 0.0]), jnp.array([3, 1, 0]))
  np.testing.assert_allclose(variants.probabilities(unknown), 1 / 3, rtol=1e-6)
  known = variants.Sampling(jnp.array([0.6, 0.3, 0.1]), jnp.array([3, 1, 1]))
  np.testing.assert_allclose(variants.probabilities(known), [0.6, 0.3, 0.1], rtol=1e-6)
  np.testing.assert_allclose(variants.probabilities(known.replace(errors=jnp.zeros(3))), 1 / 3, rtol=1e-6)
  draws = jax.vmap(lambda step: variants.draw(jax.random.key(0), step, known))(jnp.arange(4000))
  np.testing.assert_allclose(np.bincount(draws, minlength=3) / 4000, [0.6, 0.3, 0.1], atol=0.025)
  without = known.replace(errors=jnp.array([0.5, 0.0, 0.5]))
  assert 1 not in jax.vmap(lambda step: variants.draw(jax.random.key(1), step, without))(jnp.arange(500))


@pytest.mark.parametrize("num_devices", [1, 2])
def test_the_record_is_the_mean_error_of_each_attacks_batches_over_all_devices(num_devices):
  generator = np.random.default_rng(0)
  drawn, correct = generator.integers(0, 2, 12), generator.random((12, 8, 1)) < 0.3

  def record(sampling, drawn, correct):
    return variants.updated(sampling, drawn, correct)

  mesh = sharding.make_mesh(num_devices)
  specs = (sharding.REPLICATED, sharding.REPLICATED, sharding.BATCHED)
  add, sampling = jax.jit(sharding.shard_map(record, mesh, specs, sharding.REPLICATED)), variants.create(2)
  for number, of_batch in zip(drawn, correct, strict=True):
    sampling = add(sampling, number, of_batch)
  expected = [1 - correct[drawn == j].mean() for j in range(2)]
  np.testing.assert_allclose(sampling.errors, expected, rtol=1e-5)
  np.testing.assert_array_equal(sampling.batches, np.bincount(drawn))


@pytest.mark.slow
def test_the_drawn_attack_makes_the_variants_that_it_makes_among_all():
  fields = SAMPLED | {"train__epsilon_ramp_fraction": 0.0, "optimizer__learning_rate": 0.0}
  _, whole = _run(make_experiment(make_config("digits,pgd,cw,pgd_l1", **fields | {"train__variants": "all"})), 6)
  state, outputs = _run(make_experiment(make_config("digits,pgd,cw,pgd_l1", **fields)), 6)
  for output, among in zip(outputs, whole, strict=True):
    assert output.vulnerabilities.shape == (16, 1) and among.vulnerabilities.shape == (16, 3)
    np.testing.assert_allclose(output.vulnerabilities[:, 0], among.vulnerabilities[:, output.drawn], atol=1e-5)
    np.testing.assert_array_equal(output.adversarial_weights, 1.0)
  drawn = [int(output.drawn) for output in outputs]
  assert len(set(drawn)) > 1
  np.testing.assert_array_equal(state.sampling.batches, np.bincount(drawn, minlength=3))
  shares = metrics.drawn_shares(["cw", "pgd", "pgd_l1"], outputs)
  assert shares == {f"drawn/{name}": drawn.count(j) / 6 for j, name in enumerate(["cw", "pgd", "pgd_l1"])}


@pytest.mark.slow
def test_only_the_drawn_attack_is_computed(monkeypatch):
  ran = []

  def from_config(entry):
    def watched(key, logits_fn, images, labels, *, epsilon):
      jax.debug.callback(lambda name=entry["name"]: ran.append(name), ordered=False)
      return attacks.fgsm(key, logits_fn, images, labels, epsilon=epsilon)

    return jax.tree_util.Partial(watched, epsilon=0.1)

  monkeypatch.setattr(variants.attacks, "from_config", from_config)
  _, outputs = _run(make_experiment(make_config("digits,pgd,cw", **SAMPLED)), 6)
  jax.block_until_ready(outputs)
  names = ["cw", "pgd"]
  assert sorted(ran) == sorted(names[int(output.drawn)] for output in outputs) and len(set(ran)) == 2


@pytest.mark.slow
def test_logit_pairing_is_added_to_the_loss():
  """The attack to pair with is found by its name; the attacks are in alphabetical order."""
  fields = {"optimizer.learning_rate": 0.0}
  loss = lambda n, **more: _run(make_experiment(_make("max:digits,pgd_l1,cw", **fields | more), n), 1)[1][0].loss
  without, losses = loss(1), {}
  for attack in ("pgd_l1", "cw"):
    paired = {"logit_pairing.weight": 2.0, "logit_pairing.attack": attack}
    losses[attack] = loss(1, **paired) - without
    np.testing.assert_allclose(loss(2, **paired), losses[attack] + without, rtol=1e-4)
  assert losses["cw"] > 0 and losses["pgd_l1"] > 0 and losses["cw"] != losses["pgd_l1"]


@pytest.mark.slow
@pytest.mark.parametrize("preset", UNION)
def test_every_way_to_train_on_several_norms_trains_and_devices_change_nothing(preset):
  (state, outputs), (other, other_outputs) = (_run(make_experiment(_make(preset), n), 4) for n in (1, 2))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), other, state)
  np.testing.assert_array_equal([o.drawn for o in outputs], [o.drawn for o in other_outputs])
  assert np.isfinite([output.loss for output in outputs]).all() and state.step == 4
  assert (state.sampling is None) == (preset != "eat:digits")
  sums = outputs[0].adversarial_weights.sum(axis=1) + outputs[0].natural_weights
  assert (sums >= 1 - 1e-5).all()


@pytest.mark.slow
@pytest.mark.parametrize("preset", UNION)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(preset, tmp_path):
  experiment = make_experiment(_make(preset))
  calls = iter(range(1, 100))
  with pytest.raises(Preempted):
    loop_lib.train(experiment, tmp_path / "stopped", Console(quiet=True), stop=lambda: next(calls) == 3)
  states = []
  for name in ("stopped", "whole"):
    loop_lib.train(experiment, tmp_path / name, Console(quiet=True))
    with checkpoints.Checkpoints(tmp_path / name / "checkpoints", read_only=True) as saved:
      states.append(to_numpy(saved.restore(8, experiment.initial_state())[0]))
  jax.tree.map(np.testing.assert_array_equal, *states)
  if preset == "eat:digits":
    rows = metrics.read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert sum(states[0].sampling.batches) == 8
    assert all(sum(v for k, v in row.items() if k.startswith("drawn/")) == 1 for row in rows if row["split"] == "train")
  weights = dict(np.load(tmp_path / "stopped" / "weights" / "epoch_0001.npz"))
  assert weights["vulnerabilities"].shape[1:] == weights["variants"].shape
