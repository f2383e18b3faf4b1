"""The page's tables: numbers formatted for reading, with their intervals."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from lrat_jax.analysis import inspection
from lrat_jax.compare import summary as summary_lib
from lrat_jax.config import suites
from lrat_jax.core.text import seconds_text
from lrat_jax.evaluation.evaluate import CLEAN
from lrat_jax.report import words
from lrat_jax.report.methods import EvaluatedRun, MethodRuns
from lrat_jax.report.runs import Run

WILSON = "Wilson, over images"
BOOTSTRAP = "bootstrap over seeds and images"
_MINUS = "\u2212"


class Estimate(NamedTuple):
  """A share, or a difference of two shares, with the ends of its 95 % interval."""

  value: float
  low: float
  high: float

  @property
  def text(self) -> str:
    return percent(self.value)

  @property
  def interval(self) -> str:
    return f"[{percent(self.low)}, {percent(self.high)}]"

  @property
  def points(self) -> str:
    """The value as a difference, in points."""
    return signed(self.value)

  @property
  def points_interval(self) -> str:
    return f"[{signed(self.low)}, {signed(self.high)}]"

  @property
  def clear(self) -> bool:
    """Whether the interval excludes 0."""
    return self.low > 0 or self.high < 0


class Row(NamedTuple):
  """A row of a run's own table: an attack, clean, or the union."""

  name: str
  threat: str
  accuracy: Estimate
  broken: int
  seconds: str
  trained_on: bool


class Cell(NamedTuple):
  """A number in a shaded table, and its shade in [-1, 1]; None if there is no number."""

  text: str
  heat: float | None


def percent(share: float) -> str:
  """A share in percent, as "21.2" for 0.212."""
  return f"{100 * share:.1f}"


def signed(share: float) -> str:
  """A difference in points, as "+1.2"; "0.0" has no sign."""
  text = f"{100 * share:+.1f}"
  return "0.0" if float(text) == 0 else text.replace("-", _MINUS)


def wilson(accuracy: float, count: int) -> Estimate:
  """An accuracy on `count` images with its Wilson interval."""
  found = stats.binomtest(round(accuracy * count), count).proportion_ci(method="wilson")
  return Estimate(accuracy, float(found.low), float(found.high))


def trained_on(run: Run) -> set[str]:
  """The attacks of a run's suite whose kind it trained on."""
  if run.config is None:
    return set()
  return set(suites.trained_on(run.results["suite"], run.config.train_attacks.to_dict()))


def accuracies(run: Run) -> list[Row]:
  """A run's own table: clean, each attack of its suite, the union."""
  results, count = run.results, run.results["n"]
  seconds = {} if run.timings is None else run.timings["attack_seconds"]
  shares = {CLEAN: results["clean"], **results["robust"], summary_lib.WORST: results["union"]}
  threats = {name: words.threat(results["suite"][name]) for name in results["robust"]}
  threats |= {CLEAN: "the images as they are", summary_lib.WORST: "right under all of the above"}
  return [
    Row(
      name,
      threats[name],
      wilson(share, count),
      round((results["clean"] - share) * count),
      seconds_text(seconds[name]) if name in seconds else "",
      name in trained_on(run),
    )
    for name, share in shares.items()
  ]


class Comparison(NamedTuple):
  """Several methods side by side, a row for each column of `summary.summarise`.

  Attributes:
    summary: the result of `summary.summarise`.
    names: the names of the methods; the first is the baseline of the differences.
    columns: clean, the attacks, the union.
    threats: threat models, by column.
    accuracies: by column and method.
    differences: by column and method, for all methods but the first.
    interval_methods: by method, how its intervals are computed.
  """

  summary: Mapping[str, Any]
  names: list[str]
  columns: list[str]
  threats: dict[str, str]
  accuracies: dict[str, dict[str, Estimate]]
  differences: dict[str, dict[str, Estimate]]
  interval_methods: dict[str, str]

  def groups(self, column: str) -> str:
    """Says whether a method trained on the kind of a column's attack; empty if the column is in neither group."""
    return {"trained_on": "trained on by some", "held_out": "held out"}.get(
      next((group for group in ("trained_on", "held_out") if column in self.summary[group]), ""), ""
    )


def _method_accuracies(
  runs: Sequence[EvaluatedRun], groups: Mapping[str, list[str]], columns: list[str]
) -> dict[str, Estimate]:
  """By column; with Wilson intervals for one seed, with bootstrap intervals over seeds and images for several."""
  held = [summary_lib.robust_columns(run, groups) for run in runs]
  stacked = np.array([[one[column] for one in held] for column in columns])
  means = stacked.mean(axis=(1, 2))
  if len(runs) == 1:
    estimates = [wilson(float(mean), stacked.shape[2]) for mean in means]
  else:
    intervals = summary_lib.paired_intervals(stacked)
    estimates = [Estimate(float(mean), *map(float, ends)) for mean, ends in zip(means, intervals, strict=True)]
  return dict(zip(columns, estimates, strict=True))


def compare(methods: Sequence[MethodRuns], evaluated: Sequence[EvaluatedRun], summary: Mapping[str, Any]) -> Comparison:
  """The tables of several methods, from their evaluated runs and the summary of these runs."""
  groups = {name: summary[name] for name in ("trained_on", "held_out", "autoattack")}
  columns, suite = summary["columns"], summary["suite"]
  runs = {method.name: [one for one in evaluated if one.method.name == method.name] for method in methods}
  runs = {name: mine for name, mine in runs.items() if mine}
  by_method = {name: _method_accuracies(mine, groups, columns) for name, mine in runs.items()}
  differences = {
    column: {
      name: Estimate(*(method["difference"][column][key] for key in ("mean", "low", "high")))
      for name, method in summary["methods"].items()
      if column in method["difference"]
    }
    for column in columns
  }
  more = {CLEAN: "the images as they are", summary_lib.WORST: "right under all of the attacks"}
  threats = {name: words.threat(entry) for name, entry in suite.items()} | more
  return Comparison(
    summary=summary,
    names=list(runs),
    columns=columns,
    threats=threats,
    accuracies={column: {name: found[column] for name, found in by_method.items()} for column in columns},
    differences=differences,
    interval_methods={name: WILSON if len(mine) == 1 else BOOTSTRAP for name, mine in runs.items()},
  )


def correlations(found: inspection.Inconsistency) -> list[list[Cell]]:
  """Rank correlations, a row for each attack."""
  cell = lambda value: (
    Cell(f"{value:.2f}".replace("-", _MINUS), float(value)) if np.isfinite(value) else Cell("-", None)
  )
  return [[cell(value) for value in row] for row in found.rank_correlation]


def crossed(found: inspection.Inconsistency) -> list[list[Cell]]:
  """The share of images that the row's attack breaks and the column's does not; the darkest cell is the largest."""
  most = max(float(found.cross.max()), 0.01)
  return [[Cell(percent(value), float(value) / most) for value in row] for row in found.cross]


class WarningLine(NamedTuple):
  """A warning with the runs that gave it, and the warnings that differ from it only in their numbers."""

  line: str
  runs: list[str]
  alike: list[tuple[str, list[str]]]


def warnings(methods: Sequence[MethodRuns]) -> list[WarningLine]:
  """Each warning once; warnings that differ only in their numbers are together."""
  runs: dict[str, list[str]] = {}
  for method in methods:
    for run in method.runs:
      for line in run.results["warnings"] if run.results else ():
        runs.setdefault(line, []).append(f"{method.name} seed {run.seed}")
  together: dict[str, list[tuple[str, list[str]]]] = {}
  for line, names in runs.items():
    together.setdefault(re.sub(r"[0-9.]+", "", line), []).append((line, names))
  return [WarningLine(*first, more) for first, *more in together.values()]
