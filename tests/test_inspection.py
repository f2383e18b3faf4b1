"""Pictures: one per kind of record, drawn from files of a run as training writes them."""

import json

import matplotlib.image
import numpy as np

from lrat_jax import inspection


def _write_run(workdir, epochs=3):
  generator = np.random.default_rng(0)
  rows = []
  for epoch in range(epochs):
    step = 10 * (epoch + 1)
    row = {"split": "train", "step": step, "epoch": epoch, "steps": 10, "loss": 2.0 / step, "gradient_norm": 1.0}
    rows.append(row | {"natural_accuracy": 0.9, "adversarial_accuracy": 0.5})
    rows.append({"split": "validation", "step": step, "epoch": epoch, "clean": 0.9, "robust": 0.1 * epoch})
    (workdir / "weights").mkdir(exist_ok=True)
    adversarial = generator.uniform(0, 0.5, (50, 2))
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
  paths = inspection.draw(tmp_path, "test")
  assert [path.name for path in paths] == ["training_curves.png", "weight_distributions.png"]
  for path in paths:
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 300 and picture.shape[1] > 1000 and picture.std() > 0.01


def test_curves_show_the_rows_values(tmp_path):
  _write_run(tmp_path)
  figure = inspection.plot_training_curves(inspection.read_rows(tmp_path / "metrics.jsonl"), "test")
  loss, accuracy, validation = figure.axes
  np.testing.assert_allclose(loss.lines[0].get_ydata(), [0.2, 0.1, 2 / 30])
  np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [50, 50, 50])
  np.testing.assert_allclose(validation.lines[1].get_ydata(), [0, 10, 20])
  np.testing.assert_allclose(validation.lines[2].get_xydata(), [[30, 20]])  # the best checkpoint


def test_weight_lines_are_medians_of_their_epoch(tmp_path):
  _write_run(tmp_path)
  recorded = inspection.weight_epochs(tmp_path)
  assert [epoch for epoch, _ in recorded] == [0, 1, 2]
  figure = inspection.plot_weight_distributions(recorded, "test")
  medians = [np.median(arrays["adversarial_weights"][:, 1]) for _, arrays in recorded]
  lines = {line.get_label(): line for line in figure.axes[0].lines}
  np.testing.assert_allclose(lines["pgd"].get_ydata(), medians)
  np.testing.assert_allclose(lines["pgd"].get_xdata(), [1, 2, 3])
