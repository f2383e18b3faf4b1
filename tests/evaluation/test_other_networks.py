"""Attacks that use another network than the one that is evaluated, or its features: surrogates, 16 bits, LPIPS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.tree_util import Partial

from lrat_jax import attacks, models
from lrat_jax.core import sharding
from lrat_jax.core.errors import EvaluationError
from lrat_jax.evaluation import evaluate
from tests.evaluation.suite_case import SPLIT, SUITE, run_suite


def test_an_attack_is_made_on_its_surrogate_and_evaluated_on_the_model(model, variables, results):
  other = jax.jit(model.init)(jax.random.key(1), SPLIT.images[:1])
  surrogate = Partial(models.applied(model), other)
  suite = SUITE | {"transfer": SUITE["pgd"] | {"surrogate": "other.pt"}}
  summary, per_example = run_suite(model, variables, suite, surrogates={"transfer": surrogate})
  assert summary["robust"]["pgd"] == results[0]["robust"]["pgd"] < summary["robust"]["transfer"]
  keys = attacks.example_keys(jax.random.key(3), SPLIT.indices)
  attack = attacks.transfer(attacks.from_config(SUITE["pgd"]), surrogate)
  found = attack(keys, Partial(models.applied(model), variables), SPLIT.images, SPLIT.labels)
  np.testing.assert_array_equal(per_example["robust/transfer"], per_example["clean_correct"] & ~found.success)
  with pytest.raises(EvaluationError, match=r"transfer: surrogate='other.pt' is a model that was not loaded"):
    run_suite(model, variables, suite)


def test_another_surrogate_is_another_evaluation(model, variables, tmp_path):
  suite = {"transfer": SUITE["fgsm"] | {"surrogate": "other.pt"}}
  surrogate = Partial(models.applied(model), variables)
  run_suite(model, variables, suite, surrogates={"transfer": surrogate}, directory=tmp_path)
  other = Partial(models.applied(model), jax.tree.map(lambda x: 1.01 * x, variables))
  for changed in (other, lambda images: surrogate(images)[:, ::-1]):  # other weights, another function
    with pytest.raises(EvaluationError, match="predictions of the surrogate of transfer"):
      run_suite(model, variables, suite, surrogates={"transfer": changed}, directory=tmp_path)


LPIPS = {"lpips": {"name": "lpips", "epsilon": "0.2", "num_steps": 5, "num_rounds": 2}}


def test_lpips_is_measured_by_the_model_itself(model, variables):
  logits_fn = Partial(models.applied(model), variables)
  summary, per_example = run_suite(model, variables, LPIPS)
  keys = attacks.example_keys(jax.random.key(3), SPLIT.indices)
  found = attacks.from_config(LPIPS["lpips"])(
    keys, logits_fn, SPLIT.images, SPLIT.labels, features_fn=models.features_of(logits_fn)
  )
  np.testing.assert_array_equal(per_example["robust/lpips"], per_example["clean_correct"] & ~found.success)
  assert summary["robust"]["lpips"] < summary["clean"]


def test_a_model_without_features_is_named():
  logits_fn = lambda images: images.reshape(len(images), 4, -1).mean(axis=-1)
  with pytest.raises(EvaluationError, match="lpips: the model provides only logits, no features"):
    evaluate.run_suite(logits_fn, SPLIT, LPIPS, batch_size=8, mesh=sharding.make_mesh(1), seed=0)


def test_a_verdict_is_the_models_whatever_is_attacked(model, variables):
  """If attacks run on another model, the model itself still evaluates their images, also those of AutoAttack."""
  suite = {"pgd": SUITE["pgd"], "aa": {"name": "autoattack", "epsilon": "0.05", "attacks_to_run": ["apgd-ce"]}}
  logits_fn = Partial(models.applied(model), variables)
  blind = Partial(lambda variables, images: models.applied(model)(variables, lax.stop_gradient(images)), variables)
  options = {"batch_size": 8, "mesh": sharding.make_mesh(1), "seed": 3, "keep_images": True}
  found = evaluate.run_suite(logits_fn, SPLIT, suite, attacked_fn=blind, **options)
  for name in suite:
    predictions = jnp.argmax(logits_fn(jnp.asarray(found.images[name])), axis=-1)
    np.testing.assert_array_equal(found.per_example[f"prediction/{name}"], predictions)
    right = (predictions == SPLIT.labels) & found.per_example["clean_correct"]
    np.testing.assert_array_equal(found.per_example[f"robust/{name}"], right)
  np.testing.assert_array_equal(
    found.per_example["broken_by/aa"] < 0, found.per_example["prediction/aa"] == SPLIT.labels
  )
  same = evaluate.run_suite(logits_fn, SPLIT, suite, **options)
  assert found.summary["robust"]["pgd"] > same.summary["robust"]["pgd"]  # PGD had no gradient to follow
  assert found.summary["clean"] == same.summary["clean"]


@pytest.mark.parametrize("keep_images", [True, False])
def test_images_that_are_wrong_only_in_the_attacked_network_are_attacked_again(model, variables, keep_images, tmp_path):
  suite = {"pgd": SUITE["pgd"], "aa": {"name": "autoattack", "epsilon": "0.05", "attacks_to_run": ["apgd-ce"]}}
  logits_fn = Partial(models.applied(model), variables)
  wrong = Partial(lambda variables, images: -models.applied(model)(variables, images), variables)
  run = functools.partial(
    evaluate.run_suite,
    logits_fn,
    SPLIT,
    suite,
    batch_size=8,
    mesh=sharding.make_mesh(1),
    seed=3,
    keep_images=keep_images,
  )
  found, same = run(attacked_fn=wrong, directory=tmp_path), run()
  resumed = run(attacked_fn=wrong, directory=tmp_path)
  for field, expected in found.per_example.items():
    np.testing.assert_array_equal(resumed.per_example[field], expected)
  assert found.summary["robust"] == same.summary["robust"] and found.summary["union"] < found.summary["clean"]
  clean = found.per_example["clean_correct"]
  for field in ("prediction/pgd", "distance/pgd", "prediction/aa", "distance/aa", "broken_by/aa"):
    np.testing.assert_allclose(found.per_example[field][clean], same.per_example[field][clean], atol=1e-5)
  for name in suite:
    np.testing.assert_array_equal(found.examples[name].rows, same.examples[name].rows)
    if keep_images:
      np.testing.assert_allclose(found.images[name][clean], same.images[name][clean], atol=1e-5)
