"""Which of the images that an attack broke are shown: a few, the most vulnerable first."""

from typing import NamedTuple

import numpy as np

# Of each attack, so many are kept for the picture.
_COUNT = 8


class Examples(NamedTuple):
  """Images that one attack broke, the most vulnerable first: rows of the split [k], and adversarials [k, h, w, c]."""

  rows: np.ndarray
  images: np.ndarray


def most_vulnerable(vulnerabilities: np.ndarray, candidates: np.ndarray) -> np.ndarray:
  """A few of the candidates bool [n], those of the highest vulnerability first, as positions."""
  order = np.argsort(-vulnerabilities, kind="stable")
  return order[candidates[order]][:_COUNT]


def choose(result: dict[str, np.ndarray], broken: np.ndarray) -> Examples:
  """Of the images that an attack's result kept ("rows", "images"), those to show; `broken` is bool [n]."""
  rows = result["rows"]
  shown = most_vulnerable(result["vulnerabilities"][rows], broken[rows])
  return Examples(rows[shown], result["images"][shown])
