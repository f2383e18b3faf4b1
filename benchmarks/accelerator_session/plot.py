"""Bar chart of a session: `python -m benchmarks.accelerator_session.plot SESSION_DIR FILE.png`."""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.accelerator_session.evaluation import TABLE

COLORS = ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#e69f00", "#56b4e9")  # that colour-blind readers can distinguish
LABELS = {
  "at": "adversarial training",
  "lrat": "LRAT",
  "gairat": "GAIRAT",
  "at_union": "AVG of three norms",
  "lrat_union": "LRAT on three norms",
  "lrat_gairat": "LRAT + GAIRAT",
}
ATTACKS = {
  "pgd20": "PGD-20\n(trained on)",
  "cw20": "CW-20",
  "square": "Square",
  "apgd-ce + apgd-t": "APGD-CE\n+ APGD-T",
}


def draw(records: dict) -> Figure:
  """One group of bars for each attack, one bar for each method, with the standard error over images."""
  rows = {(row["method"], row["attack"]): row for row in records[TABLE]}
  methods = [method for method in LABELS if (method, "pgd20") in rows]
  figure = Figure(figsize=(7.2, 3.2), layout="constrained")
  axis = figure.subplots()
  width = 0.8 / len(methods)
  for number, method in enumerate(methods):
    found = [rows[method, attack] for attack in ATTACKS]
    heights = np.array([row["robust"] for row in found])
    errors = [np.sqrt(row["robust"] * (100 - row["robust"]) / row["n"]) for row in found]
    places = np.arange(len(ATTACKS)) + (number - (len(methods) - 1) / 2) * width
    axis.bar(
      places, heights, width, yerr=errors, color=COLORS[number], label=LABELS[method], error_kw={"elinewidth": 1}
    )
    for place, height, error in zip(places, heights, errors, strict=True):
      axis.text(place, height + error + 0.5, f"{height:.0f}", ha="center", fontsize=8)
  axis.set(ylabel="robust accuracy (%)", xticks=range(len(ATTACKS)), ylim=(0, 52))
  axis.set_xticklabels(ATTACKS.values())
  axis.spines[["top", "right"]].set_visible(False)
  axis.legend(frameon=False, ncols=len(methods), loc="upper center")
  return figure


if __name__ == "__main__":
  draw(json.loads(Path(sys.argv[1], "records.json").read_text())).savefig(sys.argv[2], dpi=150)
