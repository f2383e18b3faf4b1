"""Robust overfitting: epochs of metrics.jsonl, differences of checkpoints, the table, the figure, and the plan."""

import numpy as np
import pytest

from benchmarks import overfitting

ROWS = [
  {"split": "train", "epoch": 0, "steps": 3, "adversarial_accuracy": 0.2},
  {"split": "train", "epoch": 0, "steps": 1, "adversarial_accuracy": 0.6},
  {"split": "validation", "epoch": 0, "robust": 0.4},
  {"split": "train", "epoch": 1, "steps": 4, "adversarial_accuracy": 0.7},
  {"split": "validation", "epoch": 1, "robust": 0.35},
]


def _arrays(best, last):
  """Per-image arrays of two seeds and ten images; `best` and `last` are the numbers of robust images per seed."""
  shares = {"best/clean": (10, 10), "best/robust": best, "last/clean": (9, 10), "last/robust": last}
  return {key: np.array([np.arange(10) < count for count in counts]) for key, counts in shares.items()}


def test_an_epoch_is_the_mean_of_its_steps():
  np.testing.assert_allclose(overfitting.by_epoch([ROWS, ROWS], "train", "adversarial_accuracy"), [[0.3, 0.7]] * 2)
  np.testing.assert_allclose(overfitting.by_epoch([ROWS], "validation", "robust"), [[0.4, 0.35]])


def test_a_difference_is_the_last_less_the_best_and_then_less_the_first_methods():
  found = {"at": _arrays((6, 8), (3, 5)), "lrat": _arrays((6, 6), (5, 5))}
  said = overfitting.summarise(found)
  assert said["at"]["accuracy"]["best/robust"] == [0.6, 0.8] and said["at"]["beyond_first"] == {}
  assert said["at"]["difference"]["robust"]["mean"] == pytest.approx(-0.3)
  assert said["at"]["difference"]["clean"]["mean"] == pytest.approx(-0.05)
  beyond = said["lrat"]["beyond_first"]["robust"]
  assert beyond["mean"] == pytest.approx(0.2) and beyond["low"] < 0.2 < beyond["high"]
  lines = overfitting.table(said, {"at": [4, 5], "lrat": [6, 7]})
  assert lines[2].startswith("| at | 100.0 ± 0.0 | 95.0 ± 7.1 | 70.0 ± 14.1 | 40.0 ± 14.1 |")
  assert lines[2].endswith("|  | 4, 5 |") and "| +20.0 [" in lines[3]


def test_both_checkpoints_are_of_the_same_runs_three_times_as_long(tmp_path):
  more = ["--config.data.validation_size=100"]
  best, last = (
    overfitting.planned(overfitting.arguments("digits", checkpoint, str(tmp_path), "0,1", 2, more))
    for checkpoint in overfitting.CHECKPOINTS
  )
  assert list(best) == ["at", "lrat", "irat"] and [run.seed for run in best["lrat"]] == [0, 1]
  for name in best:
    for one, other in zip(best[name], last[name], strict=True):
      assert one.workdir == other.workdir and other.results_folder == one.workdir / "last"
      assert one.config.train == other.config.train and one.config.train.epochs == 120


def test_the_figure_has_a_line_for_each_method():
  curves = {what: {"at": [[0.1, 0.3], [0.3, 0.5]], "lrat": [[0.2, 0.4]]} for what in overfitting.PANELS}
  figure = overfitting.plot([{"title": "fashion", "curves": curves}, {"title": "digits", "curves": curves}])
  assert [axis.get_title().split(":")[0] for axis in figure.axes] == ["fashion", "fashion", "digits", "digits"]
  lines = figure.axes[0].lines
  assert [line.get_label() for line in lines] == ["at", "lrat"]
  np.testing.assert_allclose(lines[0].get_xydata(), [[1, 20], [2, 40]])
