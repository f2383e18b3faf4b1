"""Pictures: training curves, where the weights went, the images that attacks broke, and how far attacks disagree."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lrat_jax import data, inspection
from lrat_jax.evaluate import CLEAN, Judgement
from lrat_jax.inspection import Inconsistency, Moved, WeightHistory
from lrat_jax.metrics import Row, read_rows

_INK = "#444444"
# Told apart by colour-blind readers too: the natural image's, then one for each variant.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255")
_BINS = np.linspace(0.0, 1.0, 41)
_MOST_MOVED = 8
_FIELD_NAMES = {"natural": "natural weight", "across": "global weight"}


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


def _band(axis: Axes, epochs: np.ndarray, quantiles: np.ndarray, colour: str, label: str) -> None:
  """Quantiles [e, 5] over the epochs: the median as a line, the middle 50 % and 90 % as bands."""
  low, lower, median, upper, high = quantiles.T
  axis.plot(epochs, median, color=colour, label=label, marker="o" if len(epochs) == 1 else None)
  axis.fill_between(epochs, lower, upper, color=colour, alpha=0.25, linewidth=0)
  axis.fill_between(epochs, low, high, color=colour, alpha=0.10, linewidth=0)


def _bars(axis: Axes, names: Sequence[str], quantiles: np.ndarray, colours: Sequence[str]) -> None:
  """Quantiles [g, 5] of some groups, one under the other: the median as a dot, the middle 50 % and 90 % as bars."""
  for place, (low, lower, median, upper, high) in enumerate(quantiles):
    colour = colours[place % len(colours)]
    axis.plot([low, high], [place, place], color=colour, alpha=0.35, linewidth=2)
    axis.plot([lower, upper], [place, place], color=colour, alpha=0.6, linewidth=6, solid_capstyle="butt")
    axis.plot(median, place, "o", color=colour, markersize=5)
  axis.set_yticks(range(len(names)), names)
  axis.set_ylim(len(names) - 0.5, -0.5)
  axis.grid(visible=False, axis="y")


def _present(column: np.ndarray) -> np.ndarray:
  return column[~np.isnan(column)]


def plot_weight_distributions(history: WeightHistory, name: str) -> Figure:
  """Local weights, global weights and vulnerabilities over the epochs, and their distributions in the last one.

  Lines are medians, bands the middle 50 % and 90 % of the sampled training instances.

  Args:
    history: of `inspection.weight_history`.
    name: the run's, for the title.
  """
  title = f"{name}: sampled training instances (lines: medians; bands: the middle 50 % and 90 %)"
  figure, axes = _figure(title, 3, 2, 3.2)
  epochs = history.epochs + 1
  panels = {
    "local weights": {"natural": "natural"} | {str(v): f"adversarial/{v}" for v in history.variants},
    "global weights": {"pair": "across"},
    "vulnerability (positive: fooled)": {str(v): f"vulnerability/{v}" for v in history.variants},
  }
  for column, (title, fields) in enumerate(panels.items()):
    last = {label: _present(inspection.values(history, field)[-1]) for label, field in fields.items()}
    low = min(0.0, *(float(v.min()) for v in last.values()))
    high = max(1e-6, *(float(v.max()) for v in last.values()))
    # The variant of a name has one colour in every panel; the natural image has the first.
    colours = _COLOURS[1:] if column == 2 else _COLOURS
    for index, (label, field) in enumerate(fields.items()):
      colour = colours[index % len(colours)]
      _band(axes[0, column], epochs, inspection.quantiles(inspection.values(history, field)), colour, label)
      axes[1, column].hist(last[label], low + (high - low) * _BINS, color=colour, alpha=0.55, label=label)
    if column < 2:
      axes[0, column].set_ylim(bottom=0)
    axes[0, column].set(title=title, xlabel="epoch")
    axes[1, column].locator_params(axis="x", nbins=6)
    axes[1, column].set(title=f"epoch {epochs[-1]}", xlabel=title.split(" (")[0], ylabel="instances")
    axes[0, column].legend(frameon=False, loc="best")
  return figure


def plot_weights_by_class(history: WeightHistory, name: str, field: str = "natural") -> Figure:
  """A field of `inspection.values` in each class: medians over the epochs as a map, quantiles of the last epoch.

  Args:
    history: of `inspection.weight_history`.
    name: the run's, for the title.
    field: "natural", "across", "adversarial/VARIANT" or "vulnerability/VARIANT".
  """
  found = inspection.by_class(history, field)
  what = _FIELD_NAMES.get(field, field)
  figure, (axes,) = _figure(f"{name}: {what} by class", 2, height=max(3.2, 1.2 + 0.25 * len(found.groups)))
  medians = found.quantiles[:, :, 2].T
  image = axes[0].pcolormesh(history.epochs + 1, np.arange(len(found.groups)), medians, cmap="viridis")
  axes[0].grid(visible=False)
  figure.colorbar(image, ax=axes[0], label="median")
  axes[0].set(title="medians over the epochs", xlabel="epoch", ylabel="class")
  axes[0].set_yticks(range(len(found.groups)), found.groups)
  axes[0].invert_yaxis()
  axes[0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
  _bars(axes[1], found.groups, found.quantiles[-1], _COLOURS[:1])
  axes[1].set(title=f"epoch {history.epochs[-1] + 1}: median, middle 50 % and 90 %", xlabel=what, ylabel="class")
  return figure


def plot_weights_by_attack(history: WeightHistory, name: str) -> Figure:
  """Under each training attack, the variants' local weights and vulnerabilities: over the epochs, and in the last one.

  Args:
    history: of `inspection.weight_history`.
    name: the run's, for the title.
  """
  figure, axes = _figure(f"{name}: by training attack (bands: the middle 50 % and 90 %)", 2, 2, 2.8)
  for row, (kind, what) in zip(
    axes, {"adversarial": "local weight", "vulnerability": "vulnerability"}.items(), strict=True
  ):
    found = inspection.by_attack(history, kind)
    for index, variant in enumerate(found.groups):
      _band(row[0], history.epochs + 1, found.quantiles[:, index], _COLOURS[1:][index % 6], str(variant))
    row[0].set(title=f"{what} over the epochs", xlabel="epoch")
    row[0].legend(frameon=False, loc="best")
    _bars(row[1], found.groups, found.quantiles[-1], _COLOURS[1:])
    row[1].set(title=f"epoch {history.epochs[-1] + 1}", xlabel=what)
  return figure


def _show(axis: Axes, image: np.ndarray) -> None:
  axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
  axis.set(xticks=[], yticks=[])
  axis.grid(visible=False)


def plot_most_moved(history: WeightHistory, moved: Moved, split: data.Split, name: str) -> Figure:
  """Instances in a column each: the image, below it its local weights over the epochs, and its global weight.

  Args:
    history: of `inspection.weight_history`.
    moved: of `inspection.most_moved`, one instance or more.
    split: the training split; the instances are looked up there by their indices.
    name: the run's, for the title.

  Raises:
    ValueError: an instance that is not in the split.
  """
  shown = inspection.look_up(split, moved.indices)
  figure = Figure(figsize=(1.55 * len(moved.indices) + 1.0, 6.0), layout="constrained")
  FigureCanvasAgg(figure)
  figure.suptitle(f"{name}: instances whose weight moves most", fontsize=11)
  axes = figure.subplots(3, len(moved.indices), squeeze=False, sharey="row")
  local = {"natural": "natural"} | {str(v): f"adversarial/{v}" for v in history.variants}
  for (picture, *curves), column, image, label, index in zip(axes.T, moved.columns, *shown, strict=True):
    _show(picture, data.to_float(image))
    picture.set_title(f"index {index}\nlabel {label}", fontsize=8)
    for axis, fields, colours in zip(curves, (local, {"global": "across"}), (_COLOURS, (_INK,)), strict=True):
      for place, (what, field) in enumerate(fields.items()):
        weights = inspection.values(history, field)[:, column]
        colour = colours[place % len(colours)]
        axis.plot(history.epochs + 1, weights, ".-", color=colour, label=what, linewidth=1.2, markersize=3)
      axis.spines[["top", "right"]].set_visible(False)
      axis.grid(alpha=0.25, linewidth=0.6)
      axis.tick_params(colors=_INK, labelsize=7)
      axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    curves[-1].set_xlabel("epoch", fontsize=8)
  for axis, what in zip(axes[1:, 0], ("local weights", "global weight"), strict=True):
    axis.set_ylabel(what, fontsize=8)
  figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False, fontsize=8)
  return figure


def _table(axis: Axes, figure: Figure, names: Sequence[str], table: np.ndarray, digits: int, **colours) -> None:
  """A square table [k, k] as a map of colours with the number in each cell; NaN is a dash."""
  image = axis.imshow(table, **colours)
  for (row, column), value in np.ndenumerate(table):
    dark = np.isfinite(value) and sum(image.cmap(image.norm(value))[:3]) < 1.5
    text = f"{value:.{digits}f}" if np.isfinite(value) else "-"
    axis.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
  axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
  axis.set_yticks(range(len(names)), names, fontsize=8)
  axis.grid(visible=False)


def plot_inconsistency(found: Inconsistency, per_example: Mapping[str, np.ndarray], name: str) -> Figure:
  """Rank correlations, the cross-table, and the vulnerabilities under the two attacks that agree least.

  Args:
    found: of `inspection.inconsistency`.
    per_example: what it was found in.
    name: the model's, for the title.
  """
  size = max(4.2, 1.6 + 0.42 * len(found.names))
  title = f"{name}: {found.count:,} instances that are right when clean"
  figure, (axes,) = _figure(title, 3, height=size)
  figure.set_size_inches(3 * (size + 0.4), size)
  _table(axes[0], figure, found.names, found.rank_correlation, 2, cmap="RdBu", vmin=-1, vmax=1)
  axes[0].set_title("rank correlation of vulnerability")
  _table(axes[1], figure, found.names, 100 * found.cross, 1, cmap="Blues", vmin=0, vmax=max(100 * found.cross.max(), 1))
  axes[1].set(title="broken by the row's attack,\nnot by the column's (%)")
  pair = inspection.least_correlated(found)
  axes[2].set_title("vulnerability, an instance a point,\nunder the two that agree least")
  if pair is None:
    axes[2].text(0.5, 0.5, "no two attacks' vulnerabilities vary", ha="center", va="center")
    return figure
  right = np.asarray(per_example["clean_correct"], bool)
  scores = inspection.vulnerabilities(per_example, [found.names[place] for place in pair])[right]
  axes[2].scatter(*scores.T, s=9, alpha=0.35, color=_COLOURS[0], linewidths=0)
  axes[2].axhline(0, color=_INK, linewidth=0.8)
  axes[2].axvline(0, color=_INK, linewidth=0.8)
  axes[2].set(xlim=(-1.03, 1.03), ylim=(-1.03, 1.03), aspect="equal")
  axes[2].set(xlabel=f"under {found.names[pair[0]]}", ylabel=f"under {found.names[pair[1]]}")
  return figure


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
      _show(axis, image)
    label, answer = split.labels[row], judgement.per_example[f"answer/{attack}"][row]
    column[0].set_title(f"{attack}\n{label} \u2192 {answer}", fontsize=8)
    column[2].set_xlabel(f"max {np.abs(difference).max():.2g}", fontsize=8)
  for axis, title in zip(axes[:, 0], (CLEAN, "adversarial", "difference,\nscaled"), strict=True):
    axis.set_ylabel(title, fontsize=9)
  return figure


def _replace(path: Path, figure: Figure | None) -> None:
  """Writes a picture; without one, the picture of an earlier judgement goes."""
  path.parent.mkdir(exist_ok=True)
  path.unlink(missing_ok=True)
  if figure is not None:
    figure.savefig(path, dpi=120)


def draw_run(workdir: Path, name: str, split: data.Split) -> list[Path]:
  """Draws what training left in a workdir into plots/*.png and returns the files.

  Where the local weights never differ, the global ones are drawn by class and by instance; where neither do, none is.

  Args:
    name: the run's, for the titles.
    split: the training split, for the images.
  """
  figures = {}
  if rows := read_rows(workdir / "metrics.jsonl"):
    figures["training_curves"] = plot_training_curves(rows, name)
  if inspection.has_weights(workdir):
    history = inspection.weight_history(workdir)
    figures["weight_distributions"] = plot_weight_distributions(history, name)
    differing = [f for f in ("natural", "across") if inspection.first_difference(history, f) is not None]
    if differing:
      moved = inspection.most_moved(history, _MOST_MOVED, differing[0])
      figures["weights_by_class"] = plot_weights_by_class(history, name, differing[0])
      figures["most_moved"] = plot_most_moved(history, moved, split, name)
  for stem, figure in figures.items():
    _replace(workdir / "plots" / f"{stem}.png", figure)
  return [workdir / "plots" / f"{stem}.png" for stem in figures]


def draw_judgement(workdir: Path, name: str, split: data.Split, judgement: Judgement) -> None:
  """Draws plots/worst_examples.png if an attack broke anything, and inconsistency.png if two can be compared."""
  per_example = judgement.per_example
  compared = len(inspection.attack_names(per_example)) > 1 and per_example["clean_correct"].any()
  found = inspection.inconsistency(per_example) if compared else None
  _replace(workdir / "plots" / "worst_examples.png", plot_worst_examples(name, split, judgement))
  picture = None if found is None else plot_inconsistency(found, per_example, name)
  _replace(workdir / "plots" / "inconsistency.png", picture)
