"""The plot of a comparison: every method under every attack, and its difference to the first method."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrat_jax.analysis.plots.style import COLOURS, INK, blank, tidy

# If there are more methods than colours, the colours repeat with another marker.
_MARKERS = ("o", "s", "^", "D")
_WIDTH = 0.8
# The largest number of attacks side by side that is legible on a page; more attacks continue in rows below.
_MOST_COLUMNS = 6
# The number of characters in a line of the legend, and in a line of an axis label with a method's name.
_LEGEND_LINE = 60
_AXIS_LINE = 40


def _style(number: int) -> dict[str, Any]:
  marker = _MARKERS[number // len(COLOURS) % len(_MARKERS)]
  return {"color": COLOURS[number % len(COLOURS)], "marker": marker, "markersize": 5, "linestyle": "none"}


def _wrapped(method: str) -> str:
  """A method's name wrapped into lines of the legend, without splitting its fields."""
  lines = textwrap.wrap(method.replace("@", " @"), _LEGEND_LINE, break_long_words=False, break_on_hyphens=False)
  return "\n".join(lines).replace(" @", "@")


def plot_comparison(summary: Mapping[str, Any]) -> Figure:
  """Plots accuracies with their standard deviation over seeds; below them, differences (if any) with their intervals.

  More than six attacks are split into rows, each with two such panels.

  Args:
    summary: the result of `summary.summarise`.
  """
  methods, columns = summary["methods"], summary["columns"]
  rows = np.array_split(columns, -(-len(columns) // _MOST_COLUMNS))
  most = max(map(len, rows))
  title = f"{summary['title']}: {summary['n']:,} {summary['split']} images"
  width = max(1.2, 0.17 * len(methods)) * most + 1.0
  # The columns of the legend are as wide as the longest line (in inches); their height depends on their lines.
  names = [_wrapped(method) for method in methods]
  column_width = 0.6 + 0.085 * max(map(len, "\n".join(names).split("\n")))
  width = max(width, column_width)
  beside = int(width / column_width)
  lines = max(sum(1 + name.count("\n") for name in column) for column in np.array_split(names, beside))
  compares = any(method["difference"] for method in methods.values())
  height = (6.5 if len(rows) == 1 else 4.4) * len(rows) * (1 if compares else 0.55)
  figure = blank(title, width, height + 0.22 * lines)
  panels = figure.subplots((1 + compares) * len(rows), 1, squeeze=False).reshape(len(rows), -1)
  offsets = (np.arange(len(methods)) - (len(methods) - 1) / 2) * _WIDTH / max(len(methods), 2)
  for axes, row in zip(panels, rows, strict=True):
    _draw_accuracies(axes[0], summary, row.tolist(), offsets)
    if compares:
      _draw_differences(axes[1], summary, row.tolist(), offsets)
    for axis in axes:
      _mark_columns(axis, len(row), most)
    axes[-1].set_xticklabels(_labels(summary, row.tolist()), fontsize=9)
  entries = panels[0, 0].get_legend_handles_labels()
  figure.legend(*entries, loc="outside lower center", ncols=beside, frameon=False, fontsize=9)
  return figure


def _draw_accuracies(axis: Axes, summary: Mapping[str, Any], columns: Sequence[str], offsets: np.ndarray) -> None:
  """Draws each method's mean and standard deviation under some of the attacks."""
  for number, (name, method) in enumerate(summary["methods"].items()):
    places = {column: place + offsets[number] for place, column in enumerate(columns) if column in method["mean"]}
    means = [100 * method["mean"][column] for column in places]
    spread = [100 * method["std"].get(column, 0.0) for column in places]
    axis.errorbar([*places.values()], means, yerr=spread, elinewidth=1, label=_wrapped(name), **_style(number))
  axis.set(ylabel="accuracy (%)", ylim=(-2, 102))  # room for a marker at 0


def _draw_differences(axis: Axes, summary: Mapping[str, Any], columns: Sequence[str], offsets: np.ndarray) -> None:
  """Draws each method's difference to the first one, and its interval, under some of the attacks."""
  for number, method in enumerate(summary["methods"].values()):
    difference = method["difference"]
    places = {column: place + offsets[number] for place, column in enumerate(columns) if column in difference}
    if places:
      found = np.array([[100 * difference[column][key] for key in ("mean", "low", "high")] for column in places])
      reach = np.abs(found[:, 1:] - found[:, :1]).T
      axis.errorbar([*places.values()], found[:, 0], yerr=reach, elinewidth=1, **_style(number))
  baseline = summary["baseline"] if len(summary["baseline"]) <= _AXIS_LINE else "the first method"
  axis.set(ylabel=textwrap.fill(f"difference to {baseline} (points)", _AXIS_LINE))
  axis.axhline(0, color=INK, linewidth=0.8)


def _labels(summary: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
  """The attacks' names, and whether a method was trained on them."""
  group = {name: kind.replace("_", " ") for kind in ("trained_on", "held_out") for name in summary[kind]}
  return [f"{column}\n({group[column]})" if column in group else column for column in columns]


def _mark_columns(axis: Axes, count: int, most: int) -> None:
  """Separates `count` attacks by lines, in a panel with room for `most`."""
  axis.set_xticks(range(count), [""] * count)
  axis.set_xlim(-0.5, most - 0.5)
  tidy(axis)
  axis.grid(visible=False, axis="x")
  for edge in range(1, count):
    axis.axvline(edge - 0.5, color=INK, alpha=0.15, linewidth=0.6)
