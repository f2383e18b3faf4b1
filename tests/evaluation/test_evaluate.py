"""Evaluation: every image once, for any batch size and devices; robust means correct both clean and attacked."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from lrat_jax import attacks, data, models
from lrat_jax.attacks import AttackResult
from lrat_jax.core import microbatch, sharding
from lrat_jax.core.errors import ConfigError, EvaluationError
from lrat_jax.data import streams
from lrat_jax.evaluation import batches, entries, evaluate
from lrat_jax.evaluation import results as results_lib
from tests.evaluation.suite_case import SPLIT, SUITE, run_suite


@pytest.mark.parametrize(("batch_size", "num_devices"), [(16, 1), (12, 2), (64, 8)])
def test_batch_size_and_devices_change_nothing(model, variables, results, batch_size, num_devices):
  summary, per_example = run_suite(model, variables, batch_size=batch_size, num_devices=num_devices)
  for name in ("clean", "robust", "union", "n"):
    assert summary[name] == results[0][name]
  for name, expected in results[1].items():
    if name == "stages":
      assert per_example[name].tolist() == expected.tolist()
    else:
      np.testing.assert_allclose(per_example[name], expected, atol=1e-4)


def _watched(model, variables, suite):
  """(summary, per_example, batch sizes that the model was called with), with attacks on two images at a time."""
  seen, apply = set(), models.applied(model)
  logits_fn = Partial(lambda variables, images: seen.add(len(images)) or apply(variables, images), variables)
  options = {"batch_size": 8, "mesh": sharding.make_mesh(1), "seed": 3, "microbatch_size": 2}
  return *evaluate.run_suite(logits_fn, SPLIT, suite, **options)[:2], seen


def test_attacks_may_take_few_images_at_a_time(model, variables, results):
  summary, per_example, seen = _watched(model, variables, SUITE)
  assert seen == {8, 2}  # 8: clean images and the results of attacks; 2: the attacks themselves
  assert summary["robust"] == results[0]["robust"]
  for column in (f"{name}/{attack}" for name in ("vulnerability", "distance") for attack in SUITE):
    np.testing.assert_allclose(per_example[column], results[1][column], atol=1e-4)


def test_autoattack_may_take_few_images_at_a_time(model, variables):
  _, _, seen = _watched(
    model, variables, {"aa": {"name": "autoattack", "epsilon": "0.05", "attacks_to_run": ["apgd-ce"]}}
  )
  assert seen == {8, 2, 1}  # 1: to count the classes


def test_attacks_take_half_as_many_images_as_often_as_memory_is_too_small(monkeypatch, model, variables, results):
  compiled, tried = batches.batch_program, []

  def compile_for_a_small_device(attack, *rest):
    evaluate_batch = compiled(attack, *rest)
    return evaluate_batch if attack is None else functools.partial(run, attack, evaluate_batch)

  def run(attack, evaluate_batch, *batch):
    if tried[-1] > 2:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
    return evaluate_batch(*batch)

  take = attacks.microbatch
  monkeypatch.setattr(attacks, "microbatch", lambda attack, most: tried.append(most or 8) or take(attack, most))
  monkeypatch.setattr(entries, "batch_program", compile_for_a_small_device)
  with pytest.raises(ConfigError, match="config.eval.batch_size=8 is too large for the memory of"):
    run_suite(model, variables, {"fgsm": SUITE["fgsm"]})
  monkeypatch.setattr(microbatch, "_NEVER_HALVED", ())
  tried.clear()
  summary, _ = run_suite(model, variables)
  assert tried == [8, 4, 2] * 2 and summary["robust"] == results[0]["robust"]


def test_images_that_stream_change_nothing(model, variables):
  images = np.round(255 * SPLIT.images).astype(np.uint8)
  held = SPLIT._replace(images=images)
  streamed = SPLIT._replace(images=streams.stream_of(streams.MappedRecords(images)))
  suite = SUITE | {"aa": {"name": "autoattack", "epsilon": "0.05", "attacks_to_run": ["apgd-ce"]}}
  one, other = (run_suite(model, variables, suite, split=split, num_sanity_examples=4) for split in (held, streamed))
  assert one[0]["robust"] == other[0]["robust"] and one[0]["warnings"] == other[0]["warnings"]
  for name, expected in one[1].items():
    np.testing.assert_array_equal(other[1][name], expected)


def test_progress_is_told_after_every_batch(model, variables):
  told = []
  run_suite(model, variables, batch_size=16, on_progress=lambda *of: told.append(of))
  assert told == [(name, done, 40) for name in SUITE for done in (16, 32, 40)]


def test_accuracies_are_means_of_the_per_example_results(model, variables, results):
  summary, per_example = results
  answers = model.apply(variables, SPLIT.images).argmax(axis=1)
  np.testing.assert_array_equal(per_example["clean_correct"], answers == SPLIT.labels)
  assert summary["n"] == 40 and summary["clean"] == per_example["clean_correct"].mean()
  for name in SUITE:
    assert per_example[f"distance/{name}"].max() == pytest.approx(0.05, rel=1e-4)  # in L-infinity, their default
    assert summary["robust"][name] == per_example[f"robust/{name}"].mean()
    assert not (per_example[f"robust/{name}"] & ~per_example["clean_correct"]).any()
    np.testing.assert_array_equal(
      per_example[f"robust/{name}"], per_example["clean_correct"] & (per_example[f"vulnerability/{name}"] <= 0)
    )
  worst = per_example["robust/fgsm"] & per_example["robust/pgd"]
  assert summary["union"] == worst.mean()


def test_a_perfect_model_is_robust_at_epsilon_0():
  class Perfect:
    """Returns the brightness of each quarter of the rows, which defines the class of an image."""

    def apply(self, _, images, train=False):
      return images.reshape(images.shape[0], 4, -1).mean(axis=-1)

  suite = {"pgd": SUITE["pgd"] | {"epsilon": "0"}, "strong": SUITE["pgd"] | {"epsilon": "1", "step_size": "0.5"}}
  summary, _ = run_suite(Perfect(), {}, suite, batch_size=10, seed=0)
  assert summary["clean"] == 1.0 and summary["robust"] == {"pgd": 1.0, "strong": 0.0} and summary["union"] == 0.0


def test_an_attack_cannot_make_a_wrong_image_count_as_robust(model, variables):
  class Backwards:
    """The same logits with the sign of the gradient reversed, so that attacks help the model."""

    def apply(self, variables, images, train=False):
      logits = model.apply(variables, images, train=train)
      return 2 * jax.lax.stop_gradient(logits) - logits

  suite = {"helpful": SUITE["pgd"] | {"epsilon": "1", "step_size": "0.2"}}
  summary, per_example = run_suite(Backwards(), variables, suite, batch_size=20, seed=0)
  helped = (per_example["vulnerability/helpful"] < 0) & ~per_example["clean_correct"]
  assert helped.any() and not per_example["robust/helpful"][helped].any()
  assert summary["robust"]["helpful"] <= summary["clean"]


def _off_grid(images):
  """Whether an attack has changed each image [batch, 1]; clean pixels are multiples of 1/64."""
  return (jnp.abs(images * 64 - jnp.round(images * 64)) > 1e-3).any(axis=(1, 2, 3))[:, None]


@pytest.mark.parametrize(
  "entry",
  [
    SUITE["pgd"],
    {"name": "fgsm", "epsilon": "0.05"},
    {"name": "square", "epsilon": "0.05", "num_queries": 3},
    {"name": "apgd", "epsilon": "0.05", "num_steps": 3},
    {"name": "corruption", "kind": "gaussian_noise", "severity": 1},
    {"name": "unforeseen", "kind": "stadv", "epsilon": "0.05", "num_steps": 2},
    {
      "name": "autoattack",
      "epsilon": "0.05",
      "attacks_to_run": ["square"],
      "overrides": {"square": {"num_queries": 3}},
    },
  ],
  ids=lambda entry: entry["name"],
)
def test_an_image_on_which_an_attack_makes_the_model_fail_is_not_robust(entry):
  """All labels are 0, because the argmax of logits that are all NaN is 0 and would count as correct."""
  split = SPLIT._replace(images=np.round(SPLIT.images * 64) / np.float32(64), labels=np.zeros(40, np.int32))
  slope = lambda images: 0.01 * images.mean(axis=(1, 2, 3))[:, None]
  fails = lambda images: jnp.where(_off_grid(images), jnp.nan, jnp.array([1.0, 0, 0, 0]) - slope(images))
  summary, per_example = evaluate.run_suite(
    fails, split, {"it": entry}, batch_size=8, mesh=sharding.make_mesh(1), seed=0
  )[:2]
  assert summary["clean"] == 1.0
  failed = per_example["prediction/it"] == batches.NO_PREDICTION
  assert not per_example["robust/it"][failed].any() and (per_example["vulnerability/it"][failed] == 1).all()
  assert np.isfinite(per_example["distance/it"]).all()
  said = [line for line in summary["warnings"] if "NaN or infinite" in line]
  assert failed.any() == bool(said)
  if entry["name"] != "fgsm":  # its gradient has one sign, and its step can end on an image's grid
    assert failed.all() and f"on {failed.sum()} attacked images" in said[0]


def to_nan(keys, logits_fn, images, labels):
  return AttackResult(images + jnp.nan, 0 * labels)


def test_an_attack_that_ends_in_nan_is_warned_of_and_images_are_evaluated_as_they_were(model, variables):
  suite = {"nan": {"name": "tests.evaluation.test_evaluate:to_nan"}}
  summary, per_example = run_suite(model, variables, suite)
  assert summary["robust"] == {"nan": summary["clean"]} and (per_example["distance/nan"] == 0).all()
  assert [line for line in summary["warnings"] if "nan ended in NaN on 40 images" in line]


def test_gradients_that_are_not_finite_are_warned_of():
  slopeless = lambda images: jnp.sqrt(0.0 * images).sum(axis=(1, 2, 3))[:, None]  # 0, with gradient NaN
  model = lambda images: images.reshape(images.shape[0], 4, -1).mean(axis=-1) + slopeless(images)
  summary, per_example = _suite_of(model)[:2]
  assert summary["robust"] == {"fgsm": summary["clean"]} and (per_example["distance/fgsm"] == 0).all()
  assert [line for line in summary["warnings"] if line.startswith("100 % of the gradients are NaN")]


def test_a_model_that_answers_alike_to_everything_is_warned_of():
  suite = {"fgsm": SUITE["fgsm"]}
  for model, expected in (
    (lambda images: jnp.tile(jnp.arange(4.0), (images.shape[0], 1)), True),
    (lambda images: images.reshape(images.shape[0], 4, -1).mean(axis=-1), False),
  ):
    summary = evaluate.run_suite(model, SPLIT, suite, batch_size=8, mesh=sharding.make_mesh(1), seed=0).summary
    assert any("one prediction for all clean images" in line for line in summary["warnings"]) == expected


def test_results_are_strict_json_and_arrays(tmp_path, results):
  results_lib.write_results(tmp_path, results[0], {"seconds": 1.0}, results[1])
  assert json.loads((tmp_path / "results.json").read_text()) == results[0]
  with np.load(tmp_path / "per_example.npz") as saved:
    assert set(saved.files) == set(results[1])
  assert sorted(p.name for p in tmp_path.iterdir()) == ["per_example.npz", "results.json", "timings.json"]
  with pytest.raises(ValueError, match="not JSON compliant"):
    results_lib.write_results(tmp_path, {"clean": float("nan")}, {}, {})


def test_uint8_images_are_evaluated_as_the_floats_they_stand_for(model, variables):
  as_bytes = data.Split((SPLIT.images * 255).astype(np.uint8), SPLIT.labels, SPLIT.indices)
  as_floats = data.Split(as_bytes.images / np.float32(255), SPLIT.labels, SPLIT.indices)
  evaluator = batches.make_evaluator(model, None, 20, sharding.make_mesh(1))
  first, second = (evaluator(variables, split, jax.random.key(0))["vulnerabilities"] for split in (as_bytes, as_floats))
  np.testing.assert_allclose(first, second, atol=1e-6)


def _suite_of(logits_fn, split=SPLIT):
  return evaluate.run_suite(
    logits_fn, split, {"fgsm": SUITE["fgsm"]}, batch_size=16, mesh=sharding.make_mesh(1), seed=0, num_sanity_examples=8
  )


def _means(x):
  """Four different logits for each image."""
  return jnp.mean(x, axis=(1, 2, 3))[:, None] * jnp.array([1.0, -1.0, 0.5, 0.1])


@pytest.mark.parametrize(
  ("logits_fn", "labels", "said"),
  [
    (_means, np.full(40, 4), r"labels\[0\]=4 is not a class: logits_fn returns 4 classes, 0 to 3"),
    (_means, np.where(np.arange(40) == 20, -1, 0), r"labels\[20\]=-1 is not a class"),
    (lambda x: _means(x)[:, :1], np.zeros(40, int), r"float32 of shape \(16, 1\) .* at least 2 classes"),
    (lambda x: _means(x).at[:, 1].set(jnp.nan), np.zeros(40, int), r"image 0 \(16 in all\): they are NaN"),
    (lambda x: _means(x).at[:, 0].set(-jnp.inf), np.zeros(40, int), "they are -inf for its label"),
  ],
)
def test_what_are_no_logits_of_the_labels_is_refused(logits_fn, labels, said):
  with pytest.raises(EvaluationError, match=said):
    _suite_of(logits_fn, SPLIT._replace(labels=labels.astype(np.int32)))


@pytest.mark.slow
def test_classes_that_are_left_out_change_nothing():
  masked = lambda x: jnp.concatenate([_means(x), jnp.full((len(x), 2), -jnp.inf)], axis=1)
  alone, found = _suite_of(_means), _suite_of(masked)
  assert found.summary["clean"] == alone.summary["clean"] > 0
  assert found.summary["robust"] == alone.summary["robust"]
  assert found.summary["warnings"] == alone.summary["warnings"]


def _copies(folder):
  """Writes corruption files for SPLIT: row i at severity s is the clean image i - s; labels repeat every 4 rows."""
  moved = [np.roll(SPLIT.images, severity, axis=0) for severity in range(1, 6)]
  np.save(folder / "labels.npy", np.tile(SPLIT.labels, 5).astype(np.uint8))
  np.save(folder / "fog.npy", np.round(255 * np.concatenate(moved)).astype(np.uint8))
  return data.open_corrupted(str(folder), SPLIT.labels, SPLIT.indices, SPLIT.images.shape[1:])


@pytest.mark.parametrize(("batch_size", "num_devices"), [(8, 1), (12, 2)])
def test_corruptions_are_read_where_there_are_files(tmp_path, model, variables, batch_size, num_devices):
  suite = {f"fog@{severity}": {"name": "corruption", "kind": "fog", "severity": severity} for severity in (1, 4)}
  suite["pgd"] = SUITE["pgd"]
  options = {"batch_size": batch_size, "num_devices": num_devices, "corrupted": _copies(tmp_path)}
  summary, per_example = run_suite(model, variables, suite, **options)
  clean = per_example["prediction/clean"]
  np.testing.assert_array_equal(per_example["prediction/fog@1"], np.roll(clean, 1))
  np.testing.assert_array_equal(per_example["prediction/fog@4"], np.roll(clean, 4))
  distance = np.sqrt(((np.roll(SPLIT.images, 4, axis=0) - SPLIT.images) ** 2).sum(axis=(1, 2, 3)))
  np.testing.assert_allclose(per_example["distance/fog@4"], distance, atol=0.05)
  assert (per_example["distance/pgd"] < 1).all() and summary["robust"]["fog@4"] == summary["clean"]


def test_an_evaluation_does_not_go_on_with_other_files(tmp_path, model, variables):
  suite, progress = {"fog": {"name": "corruption", "kind": "fog", "severity": 1}}, tmp_path / "progress"
  run_suite(model, variables, suite, directory=progress, corrupted=_copies(tmp_path))
  with pytest.raises(EvaluationError, match="an evaluation that differs in files of config.data.corruptions"):
    run_suite(model, variables, suite, directory=progress)


def test_an_evaluation_of_a_model_with_narrow_logits_resumes(model, variables, tmp_path):
  narrow = lambda images: models.applied(model)(variables, images).astype(jnp.bfloat16)
  run = functools.partial(evaluate.run_suite, narrow, SPLIT, SUITE, batch_size=8, mesh=sharding.make_mesh(1), seed=3)
  first, second = run(directory=tmp_path), run(directory=tmp_path)
  assert first.summary == second.summary
  np.testing.assert_array_equal(first.per_example["vulnerability/pgd"], second.per_example["vulnerability/pgd"])


def test_an_evaluation_does_not_go_on_with_batches_of_another_form(monkeypatch, model, variables, tmp_path):
  monkeypatch.setattr(evaluate, "KEPT", ("predictions", "distances"))  # as an earlier version
  run_suite(model, variables, directory=tmp_path)
  monkeypatch.undo()
  with pytest.raises(EvaluationError, match="differs in arrays of a finished batch"):
    run_suite(model, variables, directory=tmp_path)
