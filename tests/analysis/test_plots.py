"""Plots: one per kind of record, drawn from a run's files as training writes them, and showing their values."""

import json

import matplotlib.image
import numpy as np

from lrat_jax.analysis import inspection, plots
from lrat_jax.evaluation.evaluate import EvaluationResult
from lrat_jax.training import metrics
from tests.helpers import make_split


def _write_run(workdir, epochs=3, local=True):
  generator = np.random.default_rng(0)
  rows = []
  for epoch in range(epochs):
    step = 10 * (epoch + 1)
    row = {"split": "train", "step": step, "epoch": epoch, "steps": 10, "loss": 2.0 / step, "gradient_norm": 1.0}
    rows.append(row | {"natural_accuracy": 0.9, "adversarial_accuracy": 0.5})
    rows.append({"split": "validation", "step": step, "epoch": epoch, "clean": 0.9, "robust": 0.1 * epoch})
    (workdir / "weights").mkdir(exist_ok=True)
    adversarial = generator.uniform(0, 0.5, (50, 2)) if local else np.full((50, 2), 0.5)
    np.savez(
      workdir / "weights" / f"epoch_{epoch:04d}.npz",
      variants=np.array(["cw", "pgd"]),
      step=np.full(50, step),
      indices=np.arange(50),
      labels=np.arange(50) % 3,
      natural_weights=1 - adversarial.sum(axis=1),
      adversarial_weights=adversarial,
      global_weights=np.ones(50),
      vulnerabilities=generator.uniform(-1, 1, (50, 2)),
    )
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_is_drawn(tmp_path):
  _write_run(tmp_path)
  paths = plots.draw_run(tmp_path, "test", make_split(50, num_classes=3))
  names = ["training_curves.png", "weight_distributions.png", "weights_by_class.png", "most_moved.png"]
  assert [path.name for path in paths] == names
  for path in paths:
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 300 and picture.shape[1] > 1000 and picture.std() > 0.01


def test_weights_that_never_differ_have_no_picture_by_class_or_instance(tmp_path):
  _write_run(tmp_path, local=False)
  paths = plots.draw_run(tmp_path, "test", make_split(50, num_classes=3))
  assert [path.stem for path in paths] == ["training_curves", "weight_distributions"]
  (tmp_path / "empty").mkdir()
  assert plots.draw_run(tmp_path / "empty", "test", make_split(50)) == []


def test_curves_show_the_rows_values(tmp_path):
  _write_run(tmp_path)
  figure = plots.plot_training_curves(metrics.read_rows(tmp_path / "metrics.jsonl"), "test")
  loss, accuracy, validation = figure.axes
  np.testing.assert_allclose(loss.lines[0].get_ydata(), [0.2, 0.1, 2 / 30])
  np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [50, 50, 50])
  np.testing.assert_allclose(validation.lines[1].get_ydata(), [0, 10, 20])
  np.testing.assert_allclose(validation.lines[2].get_xydata(), [[30, 20]])  # the best checkpoint


def test_a_name_with_dollar_signs_is_no_formula(tmp_path):
  _write_run(tmp_path)
  paths = plots.draw_run(tmp_path, "costs $1, not $2^{", make_split(50, num_classes=3))
  assert all(path.stat().st_size > 0 for path in paths)


def test_methods_are_drawn_in_one_colour_each_and_their_runs_in_a_line_each(tmp_path):
  _write_run(tmp_path)
  rows = metrics.read_rows(tmp_path / "metrics.jsonl")
  robust, clean, loss = plots.plot_training_compared({"at": [rows], "lrat": [rows, rows]}).axes
  assert [len(axis.lines) for axis in (robust, clean, loss)] == [3, 3, 3]
  first, second, third = (line.get_color() for line in robust.lines)
  assert first != second == third
  np.testing.assert_allclose(robust.lines[0].get_ydata(), [0, 10, 20])
  np.testing.assert_allclose(loss.lines[2].get_ydata(), [0.2, 0.1, 2 / 30])


def test_accuracies_stand_at_their_values_with_their_intervals():
  (axis,) = plots.plot_accuracies({"clean": (0.9, 0.8, 0.95), "pgd": (0.5, 0.4, 0.6)}, "test").axes
  points, _, (bars,) = axis.containers[0].lines
  np.testing.assert_allclose(points.get_xdata(), [90, 50])
  np.testing.assert_allclose([ends[:, 0] for ends in bars.get_segments()], [[80, 95], [40, 60]])
  assert [label.get_text() for label in axis.get_yticklabels()] == ["clean", "pgd"]


def _median(workdir, epoch, variant, label=None):
  """The median of a variant's weights in the file."""
  with np.load(workdir / "weights" / f"epoch_{epoch:04d}.npz") as arrays:
    chosen = slice(None) if label is None else arrays["labels"] == label
    return np.median(arrays["adversarial_weights"][chosen, variant])


def test_weight_lines_are_medians_of_their_epoch(tmp_path):
  _write_run(tmp_path)
  history = inspection.weight_history(tmp_path)
  medians = [_median(tmp_path, epoch, 1) for epoch in range(3)]
  for figure in (plots.plot_weight_distributions(history, "test"), plots.plot_weights_by_attack(history, "test")):
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["pgd"].get_ydata(), medians)
    np.testing.assert_allclose(lines["pgd"].get_xdata(), [1, 2, 3])


def test_the_map_of_classes_holds_their_medians(tmp_path):
  _write_run(tmp_path)
  figure = plots.plot_weights_by_class(inspection.weight_history(tmp_path), "test", "adversarial/cw")
  medians = [[_median(tmp_path, epoch, 0, label) for epoch in range(3)] for label in range(3)]
  np.testing.assert_allclose(figure.axes[0].collections[0].get_array(), medians)
  dots = [line.get_xdata()[0] for line in figure.axes[1].lines if line.get_marker() == "o"]
  np.testing.assert_allclose(dots, [row[-1] for row in medians])


def test_an_instance_stands_above_its_own_weights(tmp_path):
  _write_run(tmp_path)
  history, split = inspection.weight_history(tmp_path), make_split(50, num_classes=3)
  moved = inspection.most_moved(history, 4)
  pictures, local, across = np.reshape(plots.plot_most_moved(history, moved, split, "test").axes, (3, 4))
  for axis, curves, pair, index in zip(pictures, local, across, moved.indices, strict=True):
    assert axis.get_title() == f"index {index}\nlabel {index % 3}"
    np.testing.assert_array_equal(axis.images[0].get_array(), split.images[index, :, :, 0])
    lines = {line.get_label(): line.get_ydata() for line in curves.lines}
    assert set(lines) == {"natural", "cw", "pgd"}
    np.testing.assert_array_equal(lines["natural"], history.natural[:, index])
    np.testing.assert_array_equal(pair.lines[0].get_ydata(), history.across[:, index])


def _evaluation(*attacks):
  """30 images, all correct when clean: each attack breaks more than the one before, and the last ranks differently."""
  arrays = {"clean_correct": np.ones(30, bool)}
  for number, name in enumerate(attacks, start=1):
    scores = np.roll(np.linspace(-1, 0.3 * number, 30), 11 if number == len(attacks) else 0)
    arrays |= {f"vulnerability/{name}": scores, f"robust/{name}": scores <= 0}
    arrays |= {f"broken_by/{name}": scores > 0} if name == "autoattack" else {}
  return EvaluationResult({}, arrays, {}, {}, {})


def test_cells_hold_the_numbers_and_the_points_are_of_the_least_correlated(tmp_path):
  evaluation = _evaluation("a", "b", "c")
  found = inspection.inconsistency(evaluation.per_example)
  correlations, cross, points = plots.plot_inconsistency(found, evaluation.per_example, "test").axes
  assert [text.get_text() for text in correlations.texts] == [f"{x:.2f}" for x in found.rank_correlation.flat]
  assert [text.get_text() for text in cross.texts] == [f"{100 * x:.1f}" for x in found.cross.flat]
  pair = [found.names[place] for place in inspection.least_correlated(found)]
  assert pair[1] == "c" and found.cross[1, 0] > found.cross[0, 1]
  assert [points.get_xlabel(), points.get_ylabel()] == [f"under {name}" for name in pair]
  expected = np.stack([evaluation.per_example[f"vulnerability/{name}"] for name in pair], axis=1)
  np.testing.assert_array_equal(points.collections[0].get_offsets(), expected)


def test_inconsistency_is_drawn_where_two_attacks_can_be_compared(tmp_path):
  for attacks, drawn in ((("a", "b"), True), (("a", "autoattack"), False), (("a",), False)):
    plots.draw_evaluation(tmp_path, "test", make_split(30), _evaluation(*attacks))
    assert (tmp_path / "plots" / "inconsistency.png").exists() == drawn  # an earlier one is deleted
