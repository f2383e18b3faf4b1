"""The page's pictures: figures as SVG in the page's colours, and the worst examples with their differences as PNG."""

import base64
import hashlib
import html
import io
import re
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from lrat_jax.analysis.plots.style import COLOURS, INK, literal
from lrat_jax.report.runs import Run


class Example(NamedTuple):
  """An image that an attack broke.

  Attributes:
    attack: its name.
    index: the index of the image in its split.
    label: the true class.
    prediction: the model's prediction on the adversarial; -1 if the logits were not finite.
    largest: the largest change of a pixel, in [0, 1].
    scale: the factor by which the difference is multiplied.
    original, adversarial, difference: data URIs; the difference is middle grey where nothing changed.
  """

  attack: str
  index: int  # type: ignore[assignment]  # of an image, not the method of tuples
  label: int
  prediction: int
  largest: float
  scale: float
  original: str
  adversarial: str
  difference: str


class Chart(NamedTuple):
  """A figure of `analysis.plots` for the page: its title, a note for the reader, and its SVG."""

  title: str
  note: str
  svg: Markup


def chart(figure: Figure, note: str = "") -> Chart:
  """Converts a figure for the page: text stays text, colours are those of the page's style, and SVG ids are unique."""
  title = figure.get_suptitle()
  figure.suptitle("")
  file = io.StringIO()
  plain = dict.fromkeys(("Date", "Creator", "Format", "Type"))
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
    literal(figure).savefig(file, format="svg", transparent=True, metadata=plain)
  drawing = file.getvalue()
  drawing = drawing[drawing.index("<svg") :]
  for colour, name in _PAGE_COLOURS.items():
    drawing = drawing.replace(f": {colour}", f": var(--{name})")
  salt = hashlib.sha256(drawing.encode()).hexdigest()[:8]
  drawing = _ID.sub(rf"\g<1>{salt}-", drawing)
  label = html.escape(f"{title}. {note}".strip(), quote=True)
  drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
  return Chart(title, note, Markup(drawing))


# The colours of Matplotlib and of `analysis.plots` that a figure uses, with their names in the page's style.
_PAGE_COLOURS = {"#000000": "ink", INK: "soft", "#b0b0b0": "rule"} | {
  colour: f"series-{number}" for number, colour in enumerate(COLOURS, start=1)
}
_ID = re.compile(r'(\bid="|href="#|url\(#)')


def _uri(content: bytes) -> str:
  return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def png(image: np.ndarray) -> str:
  """An image float [h, w, c] in [0, 1], of 1 or 3 channels, as the data URI of a PNG."""
  pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "png", optimize=True)
  return _uri(file.getvalue())


def file_uri(path: Path) -> str:
  """A PNG file as a data URI."""
  return _uri(path.read_bytes())


def worst(run: Run) -> list[Example]:
  """The worst examples that a run saved; empty if it saved none."""
  if run.worst is None:
    return []
  examples = []
  for row in range(len(run.worst["attacks"])):
    original, adversarial = (run.worst[name][row].astype(float) for name in ("originals", "adversarials"))
    difference = adversarial - original
    largest = float(np.abs(difference).max(initial=0.0))
    scale = 0.5 / max(largest, 1e-12)
    examples.append(
      Example(
        attack=str(run.worst["attacks"][row]),
        **{name: int(run.worst[column][row]) for name, column in _COLUMNS.items()},
        largest=largest,
        scale=scale,
        original=png(original),
        adversarial=png(adversarial),
        difference=png(0.5 + scale * difference),
      )
    )
  return examples


_COLUMNS = {"index": "indices", "label": "labels", "prediction": "predictions"}
