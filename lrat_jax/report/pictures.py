"""The page's pictures: images as PNG inside the page, the worst examples with their differences."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lrat_jax.report.runs import Run


class Example(NamedTuple):
  """An image that an attack broke.

  Attributes:
    attack: its name.
    index: of the image in its split.
    label: the true class.
    prediction: the model's on the adversarial; -1 where its logits were not finite.
    largest: the largest change of a pixel, in [0, 1].
    scale: by what the difference is enlarged.
    original, adversarial, difference: data URIs; where nothing changed, the difference is of middle grey.
  """

  attack: str
  index: int
  label: int
  prediction: int
  largest: float
  scale: float
  original: str
  adversarial: str
  difference: str


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
  """The worst examples that a run kept; none where it kept none."""
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
