"""The look that all pictures share: colours, panels, an image, a table of numbers, a file put in place."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

INK = "#444444"
# Told apart by colour-blind readers too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255")


def blank(title: str, width: float, height: float) -> Figure:
  """A figure of so many inches with nothing but a title, which no display needs to be there for."""
  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  figure.suptitle(title, fontsize=12)
  return figure


def tidy(axis: Axes) -> None:
  """Two spines, quiet ticks and a faint grid."""
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
  """A logarithmic y axis whose ticks are plain numbers."""
  axis.set_yscale("log")
  axis.yaxis.set_major_formatter(LogFormatter())
  axis.yaxis.set_minor_formatter(LogFormatter())


def show_image(axis: Axes, image: np.ndarray) -> None:
  """An image [h, w, c] in [0, 1], grey with one channel."""
  axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
  axis.set(xticks=[], yticks=[])
  axis.grid(visible=False)


def number_table(axis: Axes, figure: Figure, names: Sequence[str], table: np.ndarray, digits: int, **colours) -> None:
  """A square table [k, k] as a map of colours with the number in each cell; NaN is a dash."""
  image = axis.imshow(table, **colours)
  for (row, column), value in np.ndenumerate(table):
    dark = np.isfinite(value) and sum(image.cmap(image.norm(value))[:3]) < 1.5
    text = f"{value:.{digits}f}" if np.isfinite(value) else "-"
    axis.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
  axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
  axis.set_yticks(range(len(names)), names, fontsize=8)
  axis.grid(visible=False)


def literal(figure: Figure) -> Figure:
  """The figure with every text as it is written: a name with dollar signs in it is no formula."""
  for text in figure.findobj(Text):
    text.set_parse_math(False)
  return figure


def replace(path: Path, figure: Figure | None) -> None:
  """Writes a picture; without one, the picture of an earlier evaluation goes."""
  path.parent.mkdir(exist_ok=True)
  path.unlink(missing_ok=True)
  if figure is not None:
    literal(figure).savefig(path, dpi=120)
