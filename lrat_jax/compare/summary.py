"""Summary of a comparison of methods: means, spread and paired differences over seeds, as data and as Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from lrat_jax.analysis import inspection
from lrat_jax.config import attack_entries, suites
from lrat_jax.core.text import counted
from lrat_jax.evaluation import metrics as metrics_lib
from lrat_jax.evaluation.evaluate import CLEAN
from lrat_jax.training import metrics

WORST, HELD_OUT_MEAN, HELD_OUT_UNION = "union", "held out, mean", "held out, union"
COMPETITIVENESS = "competitiveness"
_RESAMPLES, _CONFIDENCE = 2000, 0.95


class _Named(Protocol):
  @property
  def name(self) -> str: ...


class ComparedRun(Protocol):
  """The interface of a run in a comparison: a planned one (`methods.PlannedRun`), or one that exists already."""

  @property
  def name(self) -> str: ...
  @property
  def method(self) -> _Named: ...
  @property
  def seed(self) -> int: ...
  @property
  def workdir(self) -> Path: ...
  @property
  def command(self) -> str: ...
  @property
  def config(self) -> ConfigDict: ...
  def results(self) -> dict[str, Any] | None: ...
  def per_example(self) -> dict[str, np.ndarray]: ...


def paired_intervals(differences: np.ndarray, seed: int = 0) -> np.ndarray:
  """The 95 % bootstrap intervals of the means of paired differences, over seeds and images.

  Seeds and images are resampled independently, with replacement, so the interval holds for other seeds and other images
  of the same kind; with one seed, it holds only for other images. With only a few seeds, which say little about all
  seeds, the interval tends to be too narrow.

  Args:
    differences: float [k, seeds, images], the value of one method minus that of the other, for each seed and image.
    seed: seed of the resampling, which is the same for all k.

  Returns:
    float [k, 2], the low and high ends.
  """
  generator = np.random.default_rng(seed)
  _, num_seeds, num_images = differences.shape
  means = np.empty((_RESAMPLES, len(differences)))
  for index in range(_RESAMPLES):
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds)) / num_seeds
    images = generator.multinomial(num_images, np.full(num_images, 1 / num_images)) / num_images
    means[index] = seeds @ differences @ images
  tail = (1 - _CONFIDENCE) / 2
  return np.quantile(means, (tail, 1 - tail), axis=0).T


def paired_interval(difference: np.ndarray, seed: int = 0) -> tuple[float, float]:
  """(low, high) of `paired_intervals`, for one difference float [seeds, images]."""
  low, high = paired_intervals(difference[None], seed)[0]
  return float(low), float(high)


def _trained_on(run: ComparedRun) -> list[str]:
  """The attacks of the suite whose kind the run trained on."""
  return suites.trained_on(run.config.eval.suite.to_dict(), run.config.train_attacks.to_dict())


def _columns(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
  """The suite's attacks in three groups: of a kind that any method trained on, of other kinds, and AutoAttack."""
  suite = runs[0].config.eval.suite.to_dict()
  trained = {name for run in runs for name in _trained_on(run)}
  return {
    "trained_on": [name for name in suite if name in trained],
    "held_out": suites.held_out(suite, trained),
    "autoattack": [name for name, entry in suite.items() if attack_entries.is_autoattack(entry)],
  }


def robust_columns(run: ComparedRun, columns: Mapping[str, list[str]]) -> dict[str, np.ndarray]:
  """The values of each column of the table, float [images], in the order of the table: 1 if the model is right.

  Columns over several attacks can have other values: means over held-out attacks and over strengths are in [0, 1], and
  shares of the best known accuracies may be more than 1.

  Args:
    run: a run that has results.
    columns: the attacks as "trained_on", "held_out" and "autoattack", as `summarise` groups them.
  """
  arrays = run.per_example()
  attacks = {name: arrays[f"robust/{name}"].astype(float) for group in columns.values() for name in group}
  robust = {CLEAN: arrays["clean_correct"].astype(float), **attacks}
  if len(columns["held_out"]) > 1:
    held_out = np.stack([arrays[f"robust/{name}"] for name in columns["held_out"]])
    robust |= {HELD_OUT_MEAN: metrics_lib.mean(held_out), HELD_OUT_UNION: metrics_lib.union(held_out).astype(float)}
  robust |= {f"{name}, area": area for name, area in metrics_lib.areas(arrays, list(attacks)).items()}
  if best := (run.results() or {}).get("competitiveness", {}).get("references"):
    known = np.stack([arrays[f"robust/{name}"] for name in best])
    robust[COMPETITIVENESS] = metrics_lib.competitiveness(known, np.array([*best.values()]))
  return robust | {WORST: arrays["robust"].astype(float)}


def training_seconds(workdir: Path, batch_size: int) -> float | None:
  """Seconds of a run's steps, from its metrics.jsonl, with compilation and without validation; None without rows."""
  rows = [row for row in metrics.read_rows(workdir / "metrics.jsonl") if row["split"] == "train"]
  return sum(row["steps"] * batch_size / row["images_per_second"] for row in rows) if rows else None


def _method_summary(runs: Sequence[ComparedRun], robust: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
  done = [run for run in runs if run.name in robust]
  per_seed = {run.seed: {name: float(held.mean()) for name, held in robust[run.name].items()} for run in done}
  table = {name: [scores[name] for scores in per_seed.values()] for name in next(iter(per_seed.values()), {})}
  return {
    "commands": [run.command for run in runs],
    "trained_on": _trained_on(runs[0]),
    "training_seconds": [training_seconds(run.workdir, run.config.data.batch_size) for run in done],
    "seeds": {str(seed): scores for seed, scores in per_seed.items()},
    "mean": {name: float(np.mean(values)) for name, values in table.items()},
    "std": {name: float(np.std(values, ddof=1)) for name, values in table.items() if len(values) > 1},
    "difference": {},
  }


def _differences(ours: Sequence[Mapping[str, np.ndarray]], theirs: Sequence[Mapping[str, np.ndarray]]):
  """For each column {"mean", "low", "high"} of ours - theirs, paired by seed; empty if no seed is paired."""
  if not ours:
    return {}
  pairs = list(zip(ours, theirs, strict=True))
  differences = np.array([[mine[column] - other[column] for mine, other in pairs] for column in ours[0]])
  found = zip(ours[0], differences.mean(axis=(1, 2)).tolist(), paired_intervals(differences).tolist(), strict=True)
  return {column: {"mean": mean, "low": low, "high": high} for column, mean, (low, high) in found}


def _spread(tables: Sequence[np.ndarray]) -> dict[str, Any]:
  """{"mean", "std"} over seeds of tables [k, k], as lists; None for NaN, and as "std" if there is only one seed."""
  plain = lambda table: [[None if np.isnan(value) else float(value) for value in row] for row in table]
  spread = np.std(tables, axis=0, ddof=1) if len(tables) > 1 else np.full_like(tables[0], np.nan)
  return {"mean": plain(np.mean(tables, axis=0)), "std": plain(spread)}


def _inconsistency(runs: Sequence[ComparedRun]) -> dict[str, Any] | None:
  """How much attacks disagree on one method's runs (`inspection.inconsistency`); None if they cannot be compared."""
  found = []
  for run in runs:
    per_example = run.per_example()
    if len(inspection.attack_names(per_example)) < 2 or not per_example["clean_correct"].any():
      return None
    found.append(inspection.inconsistency(per_example))
  tables = {field: _spread([getattr(one, field) for one in found]) for field in ("rank_correlation", "cross")}
  return {"method": runs[0].method.name, "attacks": found[0].names, **tables} if found else None


def _check_same_images(runs: Sequence[ComparedRun]) -> None:
  """Raises ValueError if runs were evaluated on different images: differences are computed image by image."""
  first, *others = runs
  for run in others:
    if not np.array_equal(run.per_example()["indices"], first.per_example()["indices"]):
      raise ValueError(f"{run.name} was evaluated on other images than {first.name}.")


def summarise(runs: Sequence[ComparedRun], title: str) -> dict[str, Any]:
  """The comparison as plain data. The first run's method is the baseline of the differences.

  A run without results is left out, and its seed is missing in its method's "seeds". Differences are over the seeds
  that both methods have.

  Returns:
    {"title", "n", "split", "suite", "columns", "trained_on", "held_out", "autoattack", "baseline", "warnings",
    "missing", "inconsistency" of the first method: {"method", "attacks" [k], "rank_correlation", "cross": {"mean",
    "std"} [k, k]}, "methods": {method: {"commands", "trained_on", "training_seconds", "seeds": {seed: {column:
    accuracy}}, "mean", "std", "difference": {column: {"mean", "low", "high"}}}}}, accuracies and differences as shares.

  Raises:
    ValueError: no run has results, runs were evaluated on different images, or a file of a run is damaged.
  """
  groups = _columns(runs)
  results = {run.name: run.results() for run in runs}
  robust = {run.name: robust_columns(run, groups) for run in runs if results[run.name] is not None}
  if not robust:
    raise ValueError("no run has results.")
  _check_same_images([run for run in runs if run.name in robust])
  methods = {run.method.name: [other for other in runs if other.method.name == run.method.name] for run in runs}
  summaries = {name: _method_summary(mine, robust) for name, mine in methods.items()}
  baseline = {run.seed: robust[run.name] for run in next(iter(methods.values())) if run.name in robust}
  for name, mine in list(methods.items())[1:]:
    paired = [run for run in mine if run.name in robust and run.seed in baseline]
    summaries[name]["difference"] = _differences(
      [robust[run.name] for run in paired], [baseline[run.seed] for run in paired]
    )
  found = {name: result for name, result in results.items() if result is not None}
  return {
    "title": title,
    "n": next(iter(found.values()))["n"],
    "split": runs[0].config.eval.split,
    "suite": runs[0].config.eval.suite.to_dict(),
    "columns": list(next(iter(robust.values()))),
    **groups,
    "baseline": next(iter(methods)),
    "warnings": {name: result["warnings"] for name, result in found.items() if result["warnings"]},
    "missing": [name for name in results if name not in found],
    "inconsistency": _inconsistency([run for run in next(iter(methods.values())) if run.name in found]),
    "methods": summaries,
  }


def _accuracy(method: Mapping[str, Any], column: str) -> str:
  if column not in method["mean"]:
    return "-"
  spread = f" ± {100 * method['std'][column]:.1f}" if column in method["std"] else ""
  return f"{100 * method['mean'][column]:.1f}{spread}" + (" †" if column in method["trained_on"] else "")


def _seconds(method: Mapping[str, Any]) -> str:
  known = [seconds for seconds in method["training_seconds"] if seconds is not None]
  return f"{np.mean(known):.0f}" if known else "-"


def _change(method: Mapping[str, Any], column: str) -> str:
  if column not in method["difference"]:
    return "-"
  points = {name: 100 * value for name, value in method["difference"][column].items()}
  return f"{points['mean']:+.1f} [{points['low']:+.1f}, {points['high']:+.1f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  return ["| " + " | ".join(row) + " |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]


def _inconsistency_lines(found: Mapping[str, Any]) -> list[str]:
  """The two tables of `summarise`'s "inconsistency"."""

  def cell(mean: float | None, std: float | None, scale: float, digits: int) -> str:
    if mean is None:
      return "-"
    # The diagonal of a table varies only by rounding.
    spread = f" ± {scale * std:.{digits}f}" if std is not None and std > 1e-9 else ""
    return f"{scale * mean:.{digits}f}{spread}"

  def cells(table: Mapping[str, Any], scale: float, digits: int) -> list[list[str]]:
    rows = []
    for name, means, spreads in zip(found["attacks"], table["mean"], table["std"], strict=True):
      rows.append([name, *(cell(*pair, scale, digits) for pair in zip(means, spreads, strict=True))])
    return rows

  return [
    "",
    "Do attacks agree on which images are vulnerable? Rank correlation of vulnerability over the images that are "
    f"classified correctly when clean (`{found['method']}`):",
    "",
    *_table(["", *found["attacks"]], cells(found["rank_correlation"], 1, 2)),
    "",
    "Share of the images, in percent, that the row's attack breaks and the column's does not:",
    "",
    *_table(["", *found["attacks"]], cells(found["cross"], 100, 1)),
  ]


def _provenance_lines(summary: Mapping[str, Any]) -> list[str]:
  """Command, commit, date, device and versions, if the summary has them."""
  if "command" not in summary:
    return []
  made, packages = summary["environment"], ("python", "jax", "jaxlib", "flax")
  versions = ", ".join(f"{package} {made[package]}" for package in packages)
  commit = (summary["commit"] or "unknown")[:12] + ("-dirty" if summary.get("dirty") else "")
  return [
    "```sh",
    summary["command"],
    "```",
    "",
    f"{summary['date']}, commit {commit}, {made['device']}, "
    f"{counted(summary['jobs'], 'run')} at a time, "
    f"{versions}. Training time in seconds is the mean over runs, with compilation and without validation.",
    "",
  ]


def _warning_lines(warnings: Mapping[str, Sequence[str]]) -> list[str]:
  """Each warning once, with the number of runs that gave it, and their names if they are few."""
  runs: dict[str, list[str]] = {}
  for run, lines in warnings.items():
    for line in lines:
      runs.setdefault(line, []).append(run)
  return [
    f"- warning in {counted(len(names), 'run')}{', ' + ', '.join(names) if len(names) < 5 else ''}: {line}"
    for line, names in runs.items()
  ]


# Left out if a suite has only AutoAttack, which has attacks of every kind.
_DAGGER = (
  "† is of a kind (loss and norm) that the method trained on. An attack that no method trained on is held out.",
)


def _num_seeds(summary: Mapping[str, Any]) -> int:
  return max(len(method["seeds"]) for method in summary["methods"].values())


def resampled(summary: Mapping[str, Any]) -> str:
  """What the bootstrap of the differences resamples, in words. With one seed, the variation over seeds is unknown."""
  methods = summary["methods"]
  baseline = methods[summary["baseline"]]["seeds"].keys()
  shared = {name: len(baseline & method["seeds"].keys()) for name, method in methods.items() if method["difference"]}
  single = [name for name, count in shared.items() if count == 1]
  if not single:
    return "seeds and images"
  of = "" if len(single) == len(shared) else f" for {', '.join(single)}"
  words = f"images only{of}: with one seed, the variation between seeds is unknown"
  return f"seeds and images; over {words}" if of else words


def markdown(summary: Mapping[str, Any]) -> str:
  """A summary of `summarise` as Markdown: accuracies, differences, threat models, warnings, commands."""
  methods, columns, baseline = summary["methods"], summary["columns"], summary["baseline"]
  seeds = _num_seeds(summary)
  lines = [f"## {summary['title']}", "", *_provenance_lines(summary)]
  lines += [
    f"Accuracy in percent on {summary['n']:,} {summary['split']} images"
    f"{': mean ± standard deviation' if seeds > 1 else ''}, {counted(seeds, 'seed')}.",
    *(_DAGGER if summary["trained_on"] or summary["held_out"] else ()),
    "",
    *_table(
      ["method", *columns, "training, s"],
      [[name, *(_accuracy(method, c) for c in columns), _seconds(method)] for name, method in methods.items()],
    ),
  ]
  others = {name: method for name, method in methods.items() if name != baseline}
  if others:
    lines += [
      "",
      f"Difference to `{baseline}` in points, with the 95 % interval of a paired bootstrap over {resampled(summary)}:",
      "",
      *_table(
        ["method", *columns], [[name, *(_change(method, c) for c in columns)] for name, method in others.items()]
      ),
    ]
  if summary["inconsistency"] is not None:
    lines += _inconsistency_lines(summary["inconsistency"])
  threats = (f"{name}: {attack_entries.threat(entry)}" for name, entry in summary["suite"].items())
  lines += ["", f"Threats: {'; '.join(threats)}"]
  lines += [f"- missing: {name}" for name in summary["missing"]]
  lines += _warning_lines(summary["warnings"])
  lines += [
    "",
    "Each run by itself:",
    "",
    "```sh",
    *(c for method in methods.values() for c in method["commands"]),
    "```",
    "",
  ]
  return "\n".join(lines)
