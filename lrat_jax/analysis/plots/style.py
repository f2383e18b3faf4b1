"""The common style of all plots: colours, panels, images, tables of numbers, and how files are written."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

INK = "#444444"
# Colour-blind readers can distinguish these too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255")


def blank(title: str, width: float, height: float) -> Figure:
  """A figure with only a title, `width` by `height` inches; it needs no display."""
  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  figure.suptitle(title, fontsize=12)
  return figure


def tidy(axis: Axes) -> None:
  """Draws an axis with only two spines, grey ticks and a faint grid."""
  axis.spines[["top", "right"]].set_visible(False)
  axis.tick_params(colors=INK)
  axis.grid(alpha=0.25, linewidth=0.6)


def panels(title: str, columns: int, rows: int = 1, height: float = 3.6) -> tuple[Figure, np.ndarray]:
  """A figure and its axes [rows, columns], each `height` inches high."""
  figure = blank(title, 4.6 * columns, height * rows)
  axes = figure.subplots(rows, columns, squeeze=False)
  for axis in axes.flat:
    tidy(axis)
  return figure, axes


def log_scale(axis: Axes) -> None:
  """Makes the y axis logarithmic, with plain numbers at the ticks."""
  axis.set_yscale("log")
  axis.yaxis.set_major_formatter(LogFormatter())
  axis.yaxis.set_minor_formatter(LogFormatter())


def show_image(axis: Axes, image: np.ndarray) -> None:
  """Shows an image [h, w, c] in [0, 1], in grey if it has one channel."""
  axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
  axis.set(xticks=[], yticks=[])
  axis.grid(visible=False)


def number_table(axis: Axes, figure: Figure, names: Sequence[str], table: np.ndarray, digits: int, **colours) -> None:
  """Draws a square table [k, k] as a heat map with the number in each cell; NaN is shown as a dash."""
  image = axis.imshow(table, **colours)
  for (row, column), value in np.ndenumerate(table):
    dark = np.isfinite(value) and sum(image.cmap(image.norm(value))[:3]) < 1.5
    text = f"{value:.{digits}f}" if np.isfinite(value) else "-"
    axis.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
  axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
  axis.set_yticks(range(len(names)), names, fontsize=8)
  axis.grid(visible=False)


def literal(figure: Figure) -> Figure:
  """The figure without math text, so that a name with dollar signs is shown as it is and not as a formula."""
  for text in figure.findobj(Text):
    text.set_parse_math(False)
  return figure


def replace(path: Path, figure: Figure | None) -> None:
  """Writes a figure to `path`; if it is None, the file of an earlier evaluation is removed."""
  path.parent.mkdir(exist_ok=True)
  path.unlink(missing_ok=True)
  if figure is not None:
    literal(figure).savefig(path, dpi=120)
