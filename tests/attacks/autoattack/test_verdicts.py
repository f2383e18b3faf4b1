"""AutoAttack's verdicts and report, what they do not depend on, and its stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from lrat_jax.attacks import _stage_runner, stages
from tests.attacks.autoattack.case import linear, run

DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def _distance_to_boundary(weights, images, labels, norm):
  """The smallest perturbation in a norm that changes a linear model's prediction, ignoring [0, 1]; float [n]."""
  logits = images.reshape(len(images), -1) @ weights
  gap = logits[np.arange(len(labels)), labels][:, None] - logits
  length = np.linalg.norm(weights[:, labels].T[:, :, None] - weights[None], DUAL[norm], axis=1)
  return np.where(np.arange(5) == labels[:, None], np.inf, gap / np.maximum(length, 1e-9)).min(axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("norm", DUAL)
def test_exactly_the_images_near_the_boundary_of_a_linear_model_fall(norm, model, images, linear_weights):
  centred = 0.4 + 0.2 * images  # so that no perturbation reaches 0 or 1
  labels = np.asarray(model(centred).argmax(axis=1))
  distance = _distance_to_boundary(linear_weights, centred, labels, norm)
  epsilon = float(np.quantile(distance, 0.4))
  report = run(model, centred, labels, epsilon=epsilon, norm=norm)
  clear = np.abs(distance / epsilon - 1) > 0.01
  np.testing.assert_array_equal(report.robust[clear], distance[clear] > epsilon)
  assert clear.sum() >= 36 and epsilon < 0.4  # in L1, one pixel may take all of it without reaching 0 or 1


def test_the_report_adds_up(report, model, images, answers):
  right = np.asarray(model(report.images).argmax(axis=1)) == answers
  np.testing.assert_array_equal(report.robust, right)
  assert report.robust_accuracy == report.robust.mean() and report.clean_accuracy == 0.9
  np.testing.assert_array_equal(report.broken_by == 0, np.arange(40) % 10 == 0)
  np.testing.assert_array_equal(report.broken_by == -1, report.robust)
  assert report.stages == ("clean", "apgd-ce", "apgd-t")
  for number, summary in enumerate(report.per_attack, start=1):
    assert summary.broken == (report.broken_by == number).sum()
  assert report.per_attack[-1].robust_accuracy == report.robust_accuracy
  assert report.per_attack[0].attacked == 36


def test_what_fell_is_in_the_ball_and_the_rest_is_untouched(report, images):
  untouched = (report.broken_by <= 0).nonzero()[0]
  np.testing.assert_array_equal(report.images[untouched], images[untouched])
  assert report.distances.max() <= 0.02 + 1e-6 and (report.distances[untouched] == 0).all()
  assert report.images.min() >= 0 and report.images.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "devices"), [(50, 1), (128, 2), (8, 2), (24, 3)])
def test_batch_size_and_devices_change_no_bit(batch_size, devices, report, model, images, answers):
  other = run(model, images, answers, batch_size=batch_size, devices=jax.devices()[:devices])
  np.testing.assert_array_equal(other.images, report.images)
  np.testing.assert_array_equal(other.broken_by, report.broken_by)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["standard", "plus"])
def test_batches_order_and_subsets_change_no_verdict(version, model, images, answers):
  few = {name: {"num_steps": 5} for name in ("apgd-ce", "apgd-t", "fab-t", "apgd-dlr", "fab")}
  planned = [stage.name for stage in stages.stages(version, "linf", 5, None, {})[0]]
  overrides = {name: few.get(name, {"num_queries": 20}) for name in planned}
  whole = run(model, images, answers, version=version, overrides=overrides, batch_size=64)
  order = np.random.default_rng(0).permutation(40)[:25]
  part = run(
    model, images[order], answers[order], version=version, overrides=overrides, batch_size=7, example_indices=order
  )
  np.testing.assert_array_equal(part.broken_by, whole.broken_by[order])


def test_bytes_stay_bytes_and_mean_their_floats(model, images, answers):
  pixels = np.round(255 * images).astype(np.uint8)
  of_bytes, of_floats = (run(model, given, answers) for given in (pixels, pixels / np.float32(255)))
  assert of_bytes.clean_images is pixels and len(of_bytes.adversarials) == len(of_bytes.fallen) < 40
  np.testing.assert_array_equal(of_bytes.images, of_floats.images)
  np.testing.assert_array_equal(of_bytes.distances, of_floats.distances)


@pytest.mark.slow
def test_an_image_is_known_by_its_index_not_its_place(report, model, images, answers):
  order = np.random.default_rng(0).permutation(40)[:25]
  other = run(model, images[order], answers[order], example_indices=order)
  np.testing.assert_array_equal(other.robust, report.robust[order])
  np.testing.assert_allclose(other.images, report.images[order], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 3])
def test_few_classes_work(num_classes, images, linear_weights):
  model = Partial(linear, jnp.asarray(linear_weights[:, :num_classes]))
  labels = np.asarray(model(images).argmax(axis=1))
  small = {"apgd-ce": {"num_steps": 5}, "apgd-t": {"num_steps": 5}, "fab-t": {"num_steps": 5}}
  report = run(model, images, labels, version="standard", overrides={**small, "square": {"num_queries": 10}})
  assert 0 < report.robust_accuracy < 1
  assert any("a margin stands in" in line for line in report.warnings)
  planned, _ = stages.stages("standard", "linf", num_classes, None, {})
  assert [stage.rounds for stage in planned] == [1, num_classes - 1, num_classes - 1, 1]


def test_the_versions_have_the_originals_stages():
  names = lambda version, norm="linf": [
    (stage.name, stage.rounds) for stage in stages.stages(version, norm, 10, None, {})[0]
  ]
  assert names("standard") == [("apgd-ce", 1), ("apgd-t", 9), ("fab-t", 9), ("square", 1)]
  assert names("standard", "l1") == [("apgd-ce", 5), ("apgd-t", 5), ("fab-t", 9), ("square", 1)]
  assert names("plus") == [("apgd-ce", 5), ("apgd-dlr", 5), ("fab", 1), ("square", 1), ("apgd-t", 9), ("fab-t", 9)]
  assert names("rand") == [("apgd-ce", 1), ("apgd-dlr", 1)]
  assert names("apgd") == names("standard")[:2]


def test_gradients_of_a_round_are_counted():
  # As in the original: 100 steps; APGD needs one more gradient for its start, untargeted FAB 7 (classes) per step.
  planned = [*stages.stages("plus", "linf", 7, None, {})[0], stages.stages("rand", "linf", 7, None, {})[0][0]]
  counted = {(stage.name, stage.rounds): stage.gradient_calls("linf") for stage in planned}
  assert counted == {
    ("apgd-ce", 5): 101, ("apgd-dlr", 5): 101, ("fab", 1): 5 * 100 * 7, ("square", 1): 0,
    ("apgd-t", 6): 101, ("fab-t", 6): 100, ("apgd-ce", 1): 101 * 20,
  }  # fmt: skip
  sparse = stages.stages("standard", "l1", 7, None, {})[0]
  assert [stage.gradient_calls("l1") for stage in sparse] == [103, 103, 100, 0]  # L1-APGD starts three times


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"version": "quick"}, "version='quick' is unknown; choose from"),
    ({"attacks_to_run": ["square"]}, "version 'apgd' has no stage 'square'; choose from"),
    ({"overrides": {"fab-t": {}}}, "version 'apgd' has no stage 'fab-t'; choose from"),
    ({"norm": "l7"}, "norm='l7' is unknown"),
    ({"epsilon": 2.0}, r"epsilon=2 is outside \[0, 1\]"),
    ({"example_indices": np.zeros(3, int)}, r"example_indices must be integers of shape \(40,\)"),
  ],
)
def test_bad_arguments_are_named(change, message, model, images, answers):
  with pytest.raises(ValueError, match=message):
    run(model, images, answers, **change)


def test_images_outside_the_range_are_refused(model, images, answers):
  with pytest.raises(ValueError, match=r"images must be in \[0, 1\]"):
    run(model, 2 * images, answers)


def test_images_outside_the_ball_or_the_range_are_brought_back(images):
  found = images.copy()
  found[0, 0, 0] += 0.5
  found[1] -= 0.01 + images[1].min()  # inside a ball of 0.1, but below 0
  found[2, 3, 3] = np.nan
  repaired, outside = _stage_runner._repair(found, images, 0.1, "linf")
  np.testing.assert_array_equal(np.flatnonzero(outside), [0, 1, 2])
  assert np.isfinite(repaired).all() and repaired.min() >= 0 and repaired.max() <= 1
  assert np.abs(repaired - images).max() <= 0.1 + 1e-6
  np.testing.assert_array_equal(repaired[3:], images[3:])


def test_every_stage_and_round_has_keys_of_its_own(monkeypatch, model, images, answers):
  seen, run_batch = [], _stage_runner.microbatch.run_batch

  def watch(plan, compiled, shared, *rest):
    seen.append(tuple(jax.random.key_data(shared[1]).tolist()))
    return run_batch(plan, compiled, shared, *rest)

  monkeypatch.setattr(_stage_runner.microbatch, "run_batch", watch)
  few = {"apgd-ce": {"num_steps": 1}, "apgd-t": {"num_steps": 1}}
  report = run(model, images, answers, batch_size=64, overrides=few)  # all images in one batch
  # One for the clean images, and two (attack and evaluation) for apgd-ce and for each of the 4 targets of apgd-t.
  assert report.robust.any() and len(seen) == 1 + 2 * (1 + 4)
  assert len(set(seen)) == len(seen)
