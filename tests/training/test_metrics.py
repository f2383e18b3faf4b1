"""Rows, quantiles and the record of weights; after a kill, entries beyond the checkpoint are dropped, not repeated."""

import json

import numpy as np
import pytest

from lrat_jax.core.text import seconds_text
from lrat_jax.training import metrics
from lrat_jax.training.step import StepOutput


def _output(number, **changes):
  """The output of a step with four images (indices 0..3) and two variants."""
  grid = np.arange(8, dtype=np.float32).reshape(4, 2) / 10 + number
  fields = {
    "loss": np.float32(number),
    "gradient_norm": np.float32(2 * number),
    "parameter_norm": np.float32(3 * number),
    "drawn": np.int32(0),
    "indices": np.arange(4),
    "labels": np.arange(4) % 2,
    "natural_correct": np.array([True, True, True, False]),
    "adversarial_correct": np.array([[True, False]] * 4),
    "vulnerabilities": grid,
    "surviving_fractions": grid,
    "natural_weights": grid[:, 0],
    "adversarial_weights": grid,
    "global_weights": np.ones(4, np.float32),
  }
  return StepOutput(**fields | changes)


def test_a_row_holds_means_and_quantiles():
  row = metrics.training_row(20, 1, [_output(1), _output(3)])
  assert row["loss"] == 2 and row["gradient_norm"] == 4 and row["steps"] == 2 and row["step"] == 20
  assert row["natural_accuracy"] == 0.75 and row["adversarial_accuracy"] == 0.5
  values = np.concatenate([_output(n).adversarial_weights.ravel() for n in (1, 3)])
  assert row["adversarial_weights/q05"] == pytest.approx(np.quantile(values, 0.05))
  assert row["global_weights/median"] == 1


def test_epoch_means_weigh_rows_by_their_steps():
  rows = [metrics.training_row(2, 0, [_output(1), _output(1)]), metrics.training_row(3, 0, [_output(4)])]
  rows.append(metrics.training_row(4, 1, [_output(100)]))
  rows.append({"split": "validation", "step": 3, "epoch": 0, "clean": 1.0})
  assert metrics.epoch_means(rows, 0, ["loss"]) == {"loss": 2.0}


@pytest.mark.parametrize(
  "field", ["loss", "gradient_norm", "parameter_norm", "natural_weights", "adversarial_weights", "vulnerabilities"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_step_that_is_not_finite_is_named(field, value):
  broken = np.array(getattr(_output(1), field))
  broken.flat[0] = value
  outputs = [_output(1), _output(2, **{field: broken}), _output(3, **{field: broken})]
  metrics.check_finite(41, outputs[:1])
  with pytest.raises(metrics.NonFiniteError, match=f"{field} is not finite at step 42"):
    metrics.check_finite(41, outputs)


def test_a_writer_opened_at_a_step_drops_what_came_after_it(tmp_path):
  with metrics.MetricWriter(tmp_path, 0) as writer:
    for step in (1, 2, 3):
      writer.write({"split": "train", "step": step, "epoch": 0, "loss": float(step)})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"split": "train", "st')  # the run was killed while writing
  with metrics.MetricWriter(tmp_path, 2) as writer:
    assert [row["step"] for row in writer.rows] == [1, 2]
    writer.write({"split": "train", "step": 3, "epoch": 0, "loss": 30.0})
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
  assert list((tmp_path / "tensorboard").iterdir())


def _record(tmp_path, size=2, step=0):
  return metrics.WeightRecord(tmp_path, np.arange(4), size, ["cw", "pgd"], step)


def test_weights_of_a_fixed_sample_are_kept_epoch_by_epoch(tmp_path):
  record = _record(tmp_path)
  record.add(0, 1, [_output(1), _output(2)])
  record.save()
  record.add(1, 3, [_output(3)])
  record.save()
  with np.load(tmp_path / "epoch_0000.npz") as first, np.load(tmp_path / "epoch_0001.npz") as second:
    assert first["step"].tolist() == [1, 1, 2, 2] and second["step"].tolist() == [3, 3]
    sample = second["indices"]
    assert set(first["indices"]) == set(sample) and len(set(sample)) == 2
    np.testing.assert_array_equal(second["adversarial_weights"], _output(3).adversarial_weights[sample])
    assert first["variants"].tolist() == ["cw", "pgd"]


def test_a_resumed_record_goes_on_where_the_checkpoint_was(tmp_path):
  whole, tried, resumed = (_record(tmp_path / name) for name in ("whole", "tried", "tried"))
  whole.add(0, 1, [_output(1), _output(2), _output(3)])
  whole.save()
  tried.add(0, 1, [_output(1), _output(2)])
  tried.save()
  resumed = _record(tmp_path / "tried", step=1)  # the checkpoint was before step 2
  resumed.add(0, 2, [_output(2), _output(3)])
  resumed.save()
  with np.load(tmp_path / "whole/epoch_0000.npz") as a, np.load(tmp_path / "tried/epoch_0000.npz") as b:
    for name in a.files:
      np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(
  ("seconds", "text"), [(0.4, "0 s"), (59.7, "1 min 00 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_read_well(seconds, text):
  assert seconds_text(seconds) == text
