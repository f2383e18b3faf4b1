"""Plots of an evaluation: the images that attacks broke, and how much attacks disagree."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrat_jax import data
from lrat_jax.analysis import inspection
from lrat_jax.analysis.inspection import Inconsistency
from lrat_jax.analysis.plots.style import COLOURS, INK, blank, number_table, panels, replace, show_image
from lrat_jax.evaluation import examples
from lrat_jax.evaluation.evaluate import CLEAN, EvaluationResult


def plot_accuracies(accuracies: Mapping[str, tuple[float, float, float]], name: str) -> Figure:
  """Plots the accuracies of one model under each attack, one below the other, with their intervals.

  Args:
    accuracies: attack -> the accuracy and the ends of its interval, in [0, 1].
    name: the model's name, for the title.
  """
  figure, ((axis,),) = panels(f"{name}: accuracy under each attack", 1, height=1.1 + 0.32 * len(accuracies))
  figure.set_figwidth(7.5)
  values, low, high = 100 * np.array(list(accuracies.values())).T
  places = np.arange(len(accuracies))
  axis.errorbar(values, places, xerr=[values - low, high - values], fmt="o", color=COLOURS[0], elinewidth=1.5)
  axis.set(xlim=(0, 100), xlabel="accuracy (%), with 95 % intervals")
  axis.set_yticks(places, accuracies)
  axis.invert_yaxis()
  axis.grid(visible=False, axis="y")
  return figure


def plot_least_correlated(found: Inconsistency, per_example: Mapping[str, np.ndarray], name: str) -> Figure:
  """Plots the vulnerabilities under the two attacks that agree least, one point per instance.

  Args:
    found: the result of `inspection.inconsistency`.
    per_example: the results that it was computed from.
    name: the model's name, for the title.
  """
  figure, ((axis,),) = panels(f"{name}: vulnerability under the two attacks that agree least", 1, height=4.6)
  _scatter(axis, found, per_example)
  return figure


def _scatter(axis: Axes, found: Inconsistency, per_example: Mapping[str, np.ndarray]) -> None:
  pair = inspection.least_correlated(found)
  if pair is None:
    axis.text(0.5, 0.5, "no two attacks' vulnerabilities vary", ha="center", va="center")
    return
  right = np.asarray(per_example["clean_correct"], bool)
  scores = inspection.vulnerabilities(per_example, [found.names[place] for place in pair])[right]
  axis.scatter(scores[:, 0], scores[:, 1], s=9, alpha=0.35, color=COLOURS[0], linewidths=0, rasterized=True)
  axis.axhline(0, color=INK, linewidth=0.8)
  axis.axvline(0, color=INK, linewidth=0.8)
  axis.set(xlim=(-1.03, 1.03), ylim=(-1.03, 1.03), aspect="equal")
  axis.set(xlabel=f"under {found.names[pair[0]]}", ylabel=f"under {found.names[pair[1]]}")


def plot_inconsistency(found: Inconsistency, per_example: Mapping[str, np.ndarray], name: str) -> Figure:
  """Plots rank correlations, the cross-table, and the vulnerabilities under the two attacks that agree least.

  Args:
    found: the result of `inspection.inconsistency`.
    per_example: the results that it was computed from.
    name: the model's name, for the title.
  """
  size = max(4.2, 1.6 + 0.42 * len(found.names))
  title = f"{name}: {found.count:,} instances that are right when clean"
  figure, (axes,) = panels(title, 3, height=size)
  figure.set_size_inches(3 * (size + 0.4), size)
  number_table(axes[0], figure, found.names, found.rank_correlation, 2, cmap="RdBu", vmin=-1, vmax=1)
  axes[0].set_title("rank correlation of vulnerability")
  number_table(
    axes[1], figure, found.names, 100 * found.cross, 1, cmap="Blues", vmin=0, vmax=max(100 * found.cross.max(), 1)
  )
  axes[1].set(title="broken by the row's attack,\nnot by the column's (%)")
  axes[2].set_title("vulnerability, an instance a point,\nunder the two that agree least")
  _scatter(axes[2], found, per_example)
  return figure


def plot_worst_examples(name: str, split: data.Split, evaluation: EvaluationResult) -> Figure | None:
  """Shows the most vulnerable broken images, one per column: clean, adversarial, and their amplified difference.

  Args:
    name: the model's name, for the title.
    split: the evaluated split.
    evaluation: the result of `evaluate.run_suite`.

  Returns:
    The figure; None if no image was broken.
  """
  worst = examples.from_each(evaluation.examples)
  if not worst:
    return None
  figure = blank(f"{name}: most vulnerable images that each attack broke", 1.35 * len(worst) + 1.0, 5.2)
  axes = figure.subplots(3, len(worst), squeeze=False)
  for column, (attack, row, adversarial) in zip(axes.T, worst, strict=True):
    clean = split.images[row] / (255.0 if split.images.dtype == np.uint8 else 1.0)
    difference = adversarial - clean
    amplified = 0.5 + 0.5 * difference / max(float(np.abs(difference).max()), 1e-12)
    for axis, image in zip(column, (clean, adversarial, amplified), strict=True):
      show_image(axis, image)
    label, prediction = split.labels[row], evaluation.per_example[f"prediction/{attack}"][row]
    column[0].set_title(f"{attack}\n{label} \u2192 {prediction}", fontsize=8)
    column[2].set_xlabel(f"max {np.abs(difference).max():.2g}", fontsize=8)
  for axis, title in zip(axes[:, 0], (CLEAN, "adversarial", "difference,\nscaled"), strict=True):
    axis.set_ylabel(title, fontsize=9)
  return figure


def draw_evaluation(workdir: Path, name: str, split: data.Split, evaluation: EvaluationResult) -> None:
  """Draws plots/worst_examples.png if an attack broke an image, and inconsistency.png if two attacks are comparable."""
  per_example = evaluation.per_example
  compared = len(inspection.attack_names(per_example)) > 1 and per_example["clean_correct"].any()
  found = inspection.inconsistency(per_example) if compared else None
  replace(workdir / "plots" / "worst_examples.png", plot_worst_examples(name, split, evaluation))
  picture = None if found is None else plot_inconsistency(found, per_example, name)
  replace(workdir / "plots" / "inconsistency.png", picture)
