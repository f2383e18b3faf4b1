"""Pictures of a run: its training curves, where the weights went, and the images that attacks broke."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrat_jax import data
from lrat_jax.evaluate import CLEAN, Judgement
from lrat_jax.metrics import Row, read_rows

_INK = "#444444"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by colour-blind readers too
_BINS = np.linspace(0.0, 1.0, 41)


def _series(rows: Sequence[Row], split: str, name: str) -> tuple[list[int], list[float]]:
  mine = [row for row in rows if row["split"] == split]
  return [row["step"] for row in mine], [row[name] for row in mine]


def _figure(title: str, columns: int, rows: int = 1, height: float = 3.6) -> tuple[Figure, np.ndarray]:
  figure = Figure(figsize=(4.6 * columns, height * rows), layout="constrained")
  FigureCanvasAgg(figure)
  figure.suptitle(title, fontsize=12)
  axes = figure.subplots(rows, columns, squeeze=False)
  for axis in axes.flat:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=_INK)
    axis.grid(alpha=0.25, linewidth=0.6)
  return figure, axes


def plot_training_curves(rows: Sequence[Row], name: str) -> Figure:
  """Loss and gradient norm, accuracy in training, accuracy in validation, against the step.

  Args:
    rows: of metrics.jsonl.
    name: the run's, for the title.
  """
  figure, axes = _figure(f"{name}: training", 3)
  loss, accuracy, validation = axes[0]
  loss.plot(*_series(rows, "train", "loss"), color=_COLOURS[0], label="loss (nats)")
  loss.plot(
    *_series(rows, "train", "gradient_norm"), color=_COLOURS[1], linewidth=0.8, alpha=0.8, label="gradient norm"
  )
  loss.set(title="training loss", xlabel="step", yscale="log")
  loss.legend(frameon=False)
  for axis, split, names in (
    (accuracy, "train", {"natural_accuracy": "natural", "adversarial_accuracy": "adversarial"}),
    (validation, "validation", {"clean": "clean", "robust": "robust (chooses the best checkpoint)"}),
  ):
    for colour, (field, label) in zip(_COLOURS, names.items(), strict=False):
      steps, values = _series(rows, split, field)
      axis.plot(steps, 100 * np.asarray(values), color=colour, label=label)
    axis.set(title=f"{'training' if split == 'train' else split} accuracy (%)", xlabel="step", ylim=(0, 100))
    axis.legend(frameon=False, loc="lower right")
  steps, robust = _series(rows, "validation", "robust")
  if steps:
    best = int(np.argmax(robust))
    validation.plot(steps[best], 100 * robust[best], "o", color=_COLOURS[1], markersize=5)
  return figure


def weight_epochs(workdir: Path) -> list[tuple[int, dict[str, np.ndarray]]]:
  """The recorded weights of a run, (epoch from 0, arrays as metrics.WeightRecord writes them), in order."""
  found = []
  for path in sorted((workdir / "weights").glob("epoch_*.npz")):
    with np.load(path) as arrays:
      found.append((int(path.stem.removeprefix("epoch_")), dict(arrays)))
  return found


def _band(axis, epochs: Sequence[int], values: Sequence[np.ndarray], colour: str, label: str) -> None:
  """Median of each epoch as a line, the middle 50 % and 90 % as bands."""
  quantiles = np.array([np.quantile(v, (0.05, 0.25, 0.5, 0.75, 0.95)) for v in values]).T
  axis.plot(epochs, quantiles[2], color=colour, label=label)
  axis.fill_between(epochs, quantiles[1], quantiles[3], color=colour, alpha=0.25, linewidth=0)
  axis.fill_between(epochs, quantiles[0], quantiles[4], color=colour, alpha=0.10, linewidth=0)


def plot_weight_distributions(recorded: Sequence[tuple[int, dict[str, np.ndarray]]], name: str) -> Figure:
  """Local weights, global weights and vulnerabilities over the epochs, and their distributions in the last one.

  Lines are medians, bands the middle 50 % and 90 % of the sampled training instances.

  Args:
    recorded: of `weight_epochs`; one epoch or more.
    name: the run's, for the title.
  """
  title = f"{name}: sampled training instances (lines: medians; bands: the middle 50 % and 90 %)"
  figure, axes = _figure(title, 3, 2, 3.2)
  epochs = [epoch + 1 for epoch, _ in recorded]
  variants = [str(v) for v in recorded[-1][1]["variants"]]
  local = {"natural": [arrays["natural_weights"] for _, arrays in recorded]} | {
    variant: [arrays["adversarial_weights"][:, j] for _, arrays in recorded] for j, variant in enumerate(variants)
  }
  across = {"pair": [arrays["global_weights"] for _, arrays in recorded]}
  vulnerable = {v: [arrays["vulnerabilities"][:, j] for _, arrays in recorded] for j, v in enumerate(variants)}
  for column, (title, groups) in enumerate(
    {"local weights": local, "global weights": across, "vulnerability (positive: fooled)": vulnerable}.items()
  ):
    low = min(0.0, *(float(v[-1].min()) for v in groups.values()))
    high = max(1e-6, *(float(v[-1].max()) for v in groups.values()))
    bins = low + (high - low) * _BINS
    # The variant of a name has one colour in every panel; the natural image has the first.
    colours = _COLOURS[1:] if column == 2 else _COLOURS
    for index, (label, values) in enumerate(groups.items()):
      colour = colours[index % len(colours)]
      _band(axes[0, column], epochs, values, colour, label)
      axes[1, column].hist(values[-1], bins, color=colour, alpha=0.55, label=label)
    if column < 2:
      axes[0, column].set_ylim(bottom=0)
    axes[0, column].set(title=title, xlabel="epoch")
    axes[1, column].locator_params(axis="x", nbins=6)
    axes[1, column].set(title=f"epoch {epochs[-1]}", xlabel=title.split(" (")[0], ylabel="instances")
    axes[0, column].legend(frameon=False, loc="best")
  return figure


def draw(workdir: Path, name: str) -> list[Path]:
  """Draws what a workdir holds into plots/*.png and returns the files."""
  figures = {}
  if rows := read_rows(workdir / "metrics.jsonl"):
    figures["training_curves"] = plot_training_curves(rows, name)
  if recorded := weight_epochs(workdir):
    figures["weight_distributions"] = plot_weight_distributions(recorded, name)
  (workdir / "plots").mkdir(exist_ok=True)
  paths = []
  for stem, figure in figures.items():
    paths.append(workdir / "plots" / f"{stem}.png")
    figure.savefig(paths[-1], dpi=120)
  return paths


def _worst(judgement: Judgement, most: int) -> list[tuple[str, int, np.ndarray]]:
  """(attack, row of the split, adversarial) of the most vulnerable images, from each attack in turn, none twice."""
  chosen: dict[int, tuple[str, int, np.ndarray]] = {}
  deepest = max((len(examples.rows) for examples in judgement.examples.values()), default=0)
  for place in range(deepest):
    for name, (rows, images) in judgement.examples.items():
      if place < len(rows) and len(chosen) < most:
        chosen.setdefault(int(rows[place]), (name, int(rows[place]), images[place]))
  order = list(judgement.examples)
  return sorted(chosen.values(), key=lambda example: order.index(example[0]))


def plot_worst_examples(name: str, split: data.Split, judgement: Judgement, most: int = 10) -> Figure | None:
  """The most vulnerable broken images, a column each: clean, adversarial, and their difference, amplified.

  Args:
    name: the model's, for the title.
    split: what was judged.
    judgement: of `evaluate.run_suite`.
    most: columns at most.

  Returns:
    The figure; None where nothing was broken.
  """
  worst = _worst(judgement, most)
  if not worst:
    return None
  figure = Figure(figsize=(1.35 * len(worst) + 1.0, 5.2), layout="constrained")
  FigureCanvasAgg(figure)
  figure.suptitle(f"{name}: most vulnerable images that each attack broke", fontsize=11)
  axes = figure.subplots(3, len(worst), squeeze=False)
  for column, (attack, row, adversarial) in zip(axes.T, worst, strict=True):
    clean = split.images[row] / (255.0 if split.images.dtype == np.uint8 else 1.0)
    difference = adversarial - clean
    amplified = 0.5 + 0.5 * difference / max(float(np.abs(difference).max()), 1e-12)
    for axis, image in zip(column, (clean, adversarial, amplified), strict=True):
      axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
      axis.set(xticks=[], yticks=[])
    label, answer = split.labels[row], judgement.per_example[f"answer/{attack}"][row]
    column[0].set_title(f"{attack}\n{label} \u2192 {answer}", fontsize=8)
    column[2].set_xlabel(f"max {np.abs(difference).max():.2g}", fontsize=8)
  for axis, title in zip(axes[:, 0], (CLEAN, "adversarial", "difference,\nscaled"), strict=True):
    axis.set_ylabel(title, fontsize=9)
  return figure


def draw_worst_examples(workdir: Path, name: str, split: data.Split, judgement: Judgement) -> None:
  """Draws plots/worst_examples.png, if an attack broke anything; a picture of an earlier judgement goes."""
  path = workdir / "plots" / "worst_examples.png"
  path.parent.mkdir(exist_ok=True)
  path.unlink(missing_ok=True)
  figure = plot_worst_examples(name, split, judgement)
  if figure is not None:
    figure.savefig(path, dpi=120)
