"""Selects which of the images that an attack broke are shown: a few, the most vulnerable first."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lrat_jax import data

# The number of images kept for each attack, and the largest number that the picture shows over all attacks.
_COUNT, _MOST = 8, 10


class Examples(NamedTuple):
  """Images that one attack broke, the most vulnerable first: rows of the split [k], and adversarials [k, h, w, c]."""

  rows: np.ndarray
  images: np.ndarray


def most_vulnerable(vulnerabilities: np.ndarray, candidates: np.ndarray) -> np.ndarray:
  """The positions of the few most vulnerable candidates, the most vulnerable first; `candidates` is bool [n]."""
  order = np.argsort(-vulnerabilities, kind="stable")
  return order[candidates[order]][:_COUNT]


def choose(result: dict[str, np.ndarray], broken: np.ndarray) -> Examples:
  """The images to show among those that an attack's result kept ("rows", "images"); `broken` is bool [n]."""
  rows = result["rows"]
  shown = most_vulnerable(result["vulnerabilities"][rows], broken[rows])
  return Examples(rows[shown], result["images"][shown])


def from_each(examples: Mapping[str, Examples], most: int = _MOST) -> list[tuple[str, int, np.ndarray]]:
  """(attack, row of the split, adversarial) of the most vulnerable images, from each attack in turn, no image twice."""
  chosen: dict[int, tuple[str, int, np.ndarray]] = {}
  deepest = max((len(shown.rows) for shown in examples.values()), default=0)
  for place in range(deepest):
    for name, (rows, images) in examples.items():
      if place < len(rows) and len(chosen) < most:
        chosen.setdefault(int(rows[place]), (name, int(rows[place]), images[place]))
  order = list(examples)
  return sorted(chosen.values(), key=lambda example: order.index(example[0]))


def to_arrays(
  split: data.Split, examples: Mapping[str, Examples], per_example: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Examples of `from_each` as arrays [k]: "attacks", "indices", "labels", "predictions", "originals", "adversarials".

  The last two are float32 [k, h, w, c] in [0, 1]; "predictions" are the model's on the adversarials.
  """
  worst = from_each(examples)
  rows = np.array([row for _, row, _ in worst], int)
  shown, names = split.take(rows), [name for name, _, _ in worst]
  return {
    "attacks": np.array(names, np.str_),
    "indices": shown.indices,
    "labels": shown.labels,
    "predictions": np.array([per_example[f"prediction/{name}"][row] for name, row, _ in worst], np.int32),
    "originals": np.asarray(data.to_float(shown.images), np.float32),
    "adversarials": np.array([image for _, _, image in worst], np.float32).reshape(shown.images.shape),
  }
