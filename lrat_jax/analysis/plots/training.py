"""Plots of a run: its training curves, and the weights of its instances."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lrat_jax import data
from lrat_jax.analysis import inspection
from lrat_jax.analysis.inspection import Moved, WeightHistory
from lrat_jax.analysis.plots.style import COLOURS, INK, blank, log_scale, panels, replace, show_image, tidy
from lrat_jax.training.metrics import Row, read_rows

_BINS = np.linspace(0.0, 1.0, 41)
_MOST_MOVED = 8
# If there are more methods than colours, the colours repeat with other dashes.
_DASHES = ("-", "--", ":", "-.")
_FIELD_NAMES = {"natural": "natural weight", "across": "global weight"}


def _series(rows: Sequence[Row], split: str, name: str) -> tuple[list[int], list[float]]:
  mine = [row for row in rows if row["split"] == split]
  return [row["step"] for row in mine], [row[name] for row in mine]


def plot_training_curves(rows: Sequence[Row], name: str) -> Figure:
  """Plots loss and gradient norm, training accuracy, and validation accuracy against the step.

  Args:
    rows: the rows of metrics.jsonl.
    name: the run's name, for the title.
  """
  figure, axes = panels(f"{name}: training", 3)
  loss, accuracy, validation = axes[0]
  loss.plot(*_series(rows, "train", "loss"), color=COLOURS[0], label="loss (nats)")
  loss.plot(*_series(rows, "train", "gradient_norm"), color=COLOURS[1], linewidth=0.8, alpha=0.8, label="gradient norm")
  loss.set(title="training loss", xlabel="step")
  log_scale(loss)
  loss.legend(frameon=False)
  for axis, split, names in (
    (accuracy, "train", {"natural_accuracy": "natural", "adversarial_accuracy": "adversarial"}),
    (validation, "validation", {"clean": "clean", "robust": "robust (chooses the best checkpoint)"}),
  ):
    for colour, (field, label) in zip(COLOURS, names.items(), strict=False):
      steps, values = _series(rows, split, field)
      axis.plot(steps, 100 * np.asarray(values), color=colour, label=label)
    axis.set(title=f"{'training' if split == 'train' else split} accuracy (%)", xlabel="step", ylim=(0, 100))
    axis.legend(frameon=False, loc="lower right")
  steps, robust = _series(rows, "validation", "robust")
  if steps:
    best = int(np.argmax(robust))
    validation.plot(steps[best], 100 * robust[best], "o", color=COLOURS[1], markersize=5)
  return figure


def plot_training_compared(methods: Mapping[str, Sequence[Sequence[Row]]]) -> Figure:
  """Plots robust and clean validation accuracy and training loss of several methods, one line per run.

  Args:
    methods: name -> the rows of metrics.jsonl for each of the method's runs.
  """
  figure, (axes,) = panels("Training, a line for each run", 3)
  kinds = (("validation", "robust"), ("validation", "clean"), ("train", "loss"))
  for axis, (split, field) in zip(axes, kinds, strict=True):
    for place, (name, runs) in enumerate(methods.items()):
      for number, rows in enumerate(runs):
        steps, values = _series(rows, split, field)
        style = {"color": COLOURS[place % len(COLOURS)], "linestyle": _DASHES[place // len(COLOURS) % len(_DASHES)]}
        scaled = np.asarray(values) * (1 if field == "loss" else 100)
        axis.plot(steps, scaled, marker="o" if len(steps) == 1 else None, label=None if number else name, **style)
    if field == "loss":
      axis.set(title="training loss (nats)", xlabel="step")
      log_scale(axis)
    else:
      axis.set(title=f"{field} accuracy in validation (%)", xlabel="step", ylim=(0, 100))
  columns = max(1, 130 // (8 + max(map(len, methods))))
  figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
  return figure


def _band(
  axis: Axes, epochs: np.ndarray, quantiles: np.ndarray, colour: str, label: str, *, widest: bool = True
) -> None:
  """Draws quantiles [e, 5] over the epochs: the median as a line, the middle 50 % as a band, and 90 % if `widest`."""
  low, lower, median, upper, high = quantiles.T
  axis.plot(epochs, median, color=colour, label=label, marker="o" if len(epochs) == 1 else None)
  axis.fill_between(epochs, lower, upper, color=colour, alpha=0.25, linewidth=0)
  if widest:
    axis.fill_between(epochs, low, high, color=colour, alpha=0.10, linewidth=0)


def _bars(axis: Axes, names: Sequence[str] | np.ndarray, quantiles: np.ndarray, colours: Sequence[str]) -> None:
  """Draws quantiles [g, 5] of groups, one below the other: the median as a dot, the middle 50 % and 90 % as bars."""
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
  """Plots local weights, global weights and vulnerabilities over the epochs, and their histograms in the last one.

  Lines are medians, and bands the middle 50 % and 90 %, of the sampled training instances. With several training
  attacks, bands are only the middle 50 %, and histograms are outlines, so that they do not hide one another.

  Args:
    history: the result of `inspection.weight_history`.
    name: the run's name, for the title.
  """
  several = len(history.variants) > 1
  bands = "the middle 50 %" if several else "the middle 50 % and 90 %"
  title = f"{name}: sampled training instances (lines: medians; bands: {bands})"
  figure, axes = panels(title, 3, 2, 3.2)
  epochs = history.epochs + 1
  fields_of = {
    "local weights": {"natural": "natural"} | {str(v): f"adversarial/{v}" for v in history.variants},
    "global weights": {"pair": "across"},
    "vulnerability (positive: fooled)": {str(v): f"vulnerability/{v}" for v in history.variants},
  }
  for column, (title, fields) in enumerate(fields_of.items()):
    last = {label: _present(inspection.values(history, field)[-1]) for label, field in fields.items()}
    low = min(0.0, *(float(v.min()) for v in last.values()))
    high = max(1e-6, *(float(v.max()) for v in last.values()))
    # A variant has the same colour in every panel; the natural image has the first colour.
    colours = COLOURS[1:] if column == 2 else COLOURS
    for index, (label, field) in enumerate(fields.items()):
      colour = colours[index % len(colours)]
      quantiles = inspection.quantiles(inspection.values(history, field))
      _band(axes[0, column], epochs, quantiles, colour, label, widest=not several)
      shape = {"histtype": "step", "linewidth": 1.5} if several else {"alpha": 0.55}
      axes[1, column].hist(last[label], low + (high - low) * _BINS, color=colour, label=label, **shape)
    if column < 2:
      axes[0, column].set_ylim(bottom=0)
    axes[0, column].set(title=title, xlabel="epoch")
    axes[1, column].locator_params(axis="x", nbins=6)
    axes[1, column].set(title=f"epoch {epochs[-1]}", xlabel=title.split(" (")[0], ylabel="instances")
    axes[0, column].legend(frameon=False, loc="best")
  return figure


def plot_weights_by_class(history: WeightHistory, name: str, field: str = "natural") -> Figure:
  """Plots a field of `inspection.values` by class: medians over the epochs as a heat map, quantiles of the last epoch.

  Args:
    history: the result of `inspection.weight_history`.
    name: the run's name, for the title.
    field: "natural", "across", "adversarial/VARIANT" or "vulnerability/VARIANT".
  """
  found = inspection.by_class(history, field)
  what = _FIELD_NAMES.get(field, field)
  figure, (axes,) = panels(f"{name}: {what} by class", 2, height=max(3.2, 1.2 + 0.25 * len(found.groups)))
  medians = found.quantiles[:, :, 2].T
  image = axes[0].pcolormesh(history.epochs + 1, np.arange(len(found.groups)), medians, cmap="viridis", rasterized=True)
  axes[0].grid(visible=False)
  figure.colorbar(image, ax=axes[0], label="median")
  axes[0].set(title="medians over the epochs", xlabel="epoch", ylabel="class")
  axes[0].set_yticks(range(len(found.groups)), found.groups)
  axes[0].invert_yaxis()
  axes[0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
  _bars(axes[1], found.groups, found.quantiles[-1], COLOURS[:1])
  axes[1].set(title=f"epoch {history.epochs[-1] + 1}: median, middle 50 % and 90 %", xlabel=what, ylabel="class")
  return figure


def plot_weights_by_attack(history: WeightHistory, name: str) -> Figure:
  """Plots local weights and vulnerabilities of the variants, by training attack: over the epochs, and in the last one.

  Args:
    history: the result of `inspection.weight_history`.
    name: the run's name, for the title.
  """
  figure, axes = panels(f"{name}: by training attack (bands: the middle 50 % and 90 %)", 2, 2, 2.8)
  for row, (kind, what) in zip(
    axes, {"adversarial": "local weight", "vulnerability": "vulnerability"}.items(), strict=True
  ):
    found = inspection.by_attack(history, kind)
    for index, variant in enumerate(found.groups):
      _band(row[0], history.epochs + 1, found.quantiles[:, index], COLOURS[1:][index % 6], str(variant))
    row[0].set(title=f"{what} over the epochs", xlabel="epoch")
    row[0].legend(frameon=False, loc="best")
    _bars(row[1], found.groups, found.quantiles[-1], COLOURS[1:])
    row[1].set(title=f"epoch {history.epochs[-1] + 1}", xlabel=what)
  return figure


def plot_most_moved(history: WeightHistory, moved: Moved, split: data.Split, name: str) -> Figure:
  """Shows one instance per column: the image, and below it its local weights and its global weight over the epochs.

  Args:
    history: the result of `inspection.weight_history`.
    moved: the result of `inspection.most_moved`, one instance or more.
    split: the training split; the instances are looked up there by their indices.
    name: the run's name, for the title.

  Raises:
    ValueError: an instance is not in the split.
  """
  shown = inspection.look_up(split, moved.indices)
  figure = blank(f"{name}: instances whose weight moves most", 1.55 * len(moved.indices) + 1.0, 6.0)
  axes = figure.subplots(3, len(moved.indices), squeeze=False, sharey="row")
  local = {"natural": "natural"} | {str(v): f"adversarial/{v}" for v in history.variants}
  for (picture, *curves), column, image, label, index in zip(axes.T, moved.columns, *shown, strict=True):
    show_image(picture, data.to_float(image))
    picture.set_title(f"index {index}\nlabel {label}", fontsize=8)
    for axis, fields, colours in zip(curves, (local, {"global": "across"}), (COLOURS, (INK,)), strict=True):
      for place, (what, field) in enumerate(fields.items()):
        weights = inspection.values(history, field)[:, column]
        colour = colours[place % len(colours)]
        axis.plot(history.epochs + 1, weights, ".-", color=colour, label=what, linewidth=1.2, markersize=3)
      tidy(axis)
      axis.tick_params(labelsize=7)
      axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    curves[-1].set_xlabel("epoch", fontsize=8)
  for axis, what in zip(axes[1:, 0], ("local weights", "global weight"), strict=True):
    axis.set_ylabel(what, fontsize=8)
  figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False, fontsize=8)
  return figure


def draw_run(workdir: Path, name: str, split: data.Split) -> list[Path]:
  """Draws the plots of the training run in a workdir into plots/*.png and returns the files.

  The plots by class and by instance show the local weights, or the global weights if the local ones never differ. If
  neither ever differs, these two plots are left out.

  Args:
    name: the run's name, for the titles.
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
    replace(workdir / "plots" / f"{stem}.png", figure)
  return [workdir / "plots" / f"{stem}.png" for stem in figures]
