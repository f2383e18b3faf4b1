"""Robust overfitting: training three times as long; the best checkpoint, the last one, and validation by epoch.

    python -m benchmarks.overfitting --data=digits
    python -m benchmarks.overfitting --data=fashion_mnist -- --config.data.train_size=6000 --config.eval.num_images=300

Trains AT, LRAT and GAIRAT for three times the preset's epochs and evaluates the best and the last checkpoint of every
run with AutoAttack; resumable. Arguments after `--` are passed to `lrat_jax.compare`, for every run. It writes
overfitting.md, overfitting.json and overfitting.png into the workdir; `--beside=WORKDIR` draws another data set's
curves too. If a network overfits, its robust accuracy decreases from the best checkpoint to the last (Rice, Wong &
Kolter, arXiv:2002.11569). "clean" and "robust" are accuracies on test images. A difference is the last checkpoint minus
the best, with the 95 % interval of a paired bootstrap over seeds and images.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from lrat_jax.analysis.plots import style
from lrat_jax.compare import __main__ as compare
from lrat_jax.compare import methods, summary
from lrat_jax.compare.methods import PlannedRun
from lrat_jax.compare.options import parse
from lrat_jax.config.default import CHECKPOINTS, PRESETS
from lrat_jax.core import files, provenance
from lrat_jax.evaluation import results
from lrat_jax.training.metrics import Row, read_rows

FLAGS = flags.FLAGS

METHODS = "at,lrat,irat"
LONGER = 3
# The array in per_example.npz for each column of the table.
COLUMNS = {"clean": "clean_correct", "robust": "robust"}
# The panels of the figure, and the rows and field of metrics.jsonl that each shows.
PANELS = {
  "robust accuracy in validation (%)": ("validation", "robust"),
  "robust accuracy in training (%)": ("train", "adversarial_accuracy"),
}


def arguments(data: str, checkpoint: str, workdir: str, seeds: str, jobs: int, more: Sequence[str]) -> list[str]:
  """Arguments of `lrat_jax.compare` for one of `CHECKPOINTS`."""
  return [
    f"--methods={METHODS}",
    f"--seeds={seeds}",
    f"--jobs={jobs}",
    f"--data={data}",
    "--suite=autoattack",
    f"--workdir={workdir}",
    f"--config.train.epochs={LONGER * PRESETS[data]['epochs']}",
    *more,
    f"--config.eval.checkpoint={checkpoint}",
  ]


def planned(of: Sequence[str]) -> dict[str, list[PlannedRun]]:
  """The runs of a comparison with these arguments: by method, in the order of their seeds."""
  options = parse(of)
  named = {"data": options.data, "suite": options.suite, "overrides": options.overrides, "workdir": options.workdir}
  runs = methods.plan([methods.parse(name) for name in options.methods], options.seeds, **named)
  return {name: [run for run in runs if run.method.name == name] for name in options.methods}


def by_epoch(runs: Sequence[Sequence[Row]], split: str, field: str) -> np.ndarray:
  """A field of metrics.jsonl, float [runs, epochs]: the mean over an epoch's steps."""
  table = []
  for rows in runs:
    mine = [row for row in rows if row["split"] == split]
    epochs = sorted({row["epoch"] for row in mine})
    of_epoch = [[row for row in mine if row["epoch"] == epoch] for epoch in epochs]
    table.append([np.average([r[field] for r in e], weights=[r.get("steps", 1) for r in e]) for e in of_epoch])
  return np.array(table)


def _mean_and_interval(per_image: np.ndarray) -> dict[str, float]:
  """Mean and bootstrap interval of differences float [seeds, images]."""
  low, high = summary.paired_interval(per_image)
  return {"mean": float(per_image.mean()), "low": low, "high": high}


def summarise(found: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
  """By method: accuracies of both checkpoints, last minus best, and that difference minus the first method's.

  Args:
    found: by method, {"best/clean", "best/robust", "last/clean", "last/robust"}: bool [seeds, images].
  """
  change = {
    name: {column: arrays[f"last/{column}"].astype(float) - arrays[f"best/{column}"] for column in COLUMNS}
    for name, arrays in found.items()
  }
  first = next(iter(found))
  return {
    name: {
      "accuracy": {key: array.mean(axis=1).tolist() for key, array in arrays.items()},
      "difference": {column: _mean_and_interval(change[name][column]) for column in COLUMNS},
      "beyond_first": {
        column: _mean_and_interval(change[name][column] - change[first][column]) for column in COLUMNS if name != first
      },
    }
    for name, arrays in found.items()
  }


def _points(value: Mapping[str, float] | None) -> str:
  if value is None:
    return ""
  return f"{100 * value['mean']:+.1f} [{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]"


def table(summarised: Mapping[str, Any], best_epochs: Mapping[str, Sequence[int]]) -> list[str]:
  """A Markdown table with a row for each method."""
  accuracies = [f"{checkpoint}/{column}" for column in COLUMNS for checkpoint in CHECKPOINTS]
  first = next(iter(summarised))
  head = ["method", *(f"{key.split('/')[1]}, {key.split('/')[0]}" for key in accuracies)]
  head += [*(f"{column}, last - best" for column in COLUMNS), f"robust: beyond {first}'s", "best epoch"]
  lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
  for name, row in summarised.items():
    of_seeds = [100 * np.array(row["accuracy"][key]) for key in accuracies]
    spread = lambda values: f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    cells = [name, *(f"{values.mean():.1f}{spread(values)}" for values in of_seeds)]
    cells += [_points(row["difference"][column]) for column in COLUMNS]
    cells += [_points(row["beyond_first"].get("robust")), ", ".join(map(str, best_epochs[name]))]
    lines.append("| " + " | ".join(cells) + " |")
  return lines


def plot(found: Sequence[Mapping[str, Any]]) -> Figure:
  """Robust accuracy by epoch, a row for each data set: the mean over seeds as a line, all seeds as a band.

  Args:
    found: contents of overfitting.json; "curves" are, by panel and method, accuracies [seeds, epochs] in [0, 1].
  """
  figure, axes = style.panels("", len(PANELS), len(found))
  for row, said in zip(axes, found, strict=True):
    for axis, (what, by_method) in zip(row, said["curves"].items(), strict=True):
      for (name, shares), colour in zip(by_method.items(), style.COLOURS, strict=False):
        values = 100 * np.asarray(shares)
        epochs = np.arange(1, values.shape[1] + 1)
        axis.plot(epochs, values.mean(axis=0), color=colour, label=name)
        axis.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
      axis.set(title=f"{said['title']}: {what}", xlabel="epoch", ylim=(0, 100))
      axis.title.set_fontsize(9)
  axes[0, 0].legend(frameon=False, loc="lower right")
  return figure


def gather(runs: Mapping[str, Mapping[str, Sequence[PlannedRun]]]) -> dict[str, Any]:
  """Collects the results of finished runs, by checkpoint and method: overfitting.json without its provenance."""
  names = list(runs["best"])
  found = {
    name: {
      f"{checkpoint}/{column}": np.stack([run.per_example()[array] for run in runs[checkpoint][name]])
      for checkpoint in CHECKPOINTS
      for column, array in COLUMNS.items()
    }
    for name in names
  }
  rows = {name: [read_rows(run.workdir / "metrics.jsonl") for run in runs["best"][name]] for name in names}
  curves = {what: {name: by_epoch(rows[name], *where) for name in names} for what, where in PANELS.items()}
  validation = next(iter(curves.values()))
  return {
    "n": found[names[0]]["best/clean"].shape[1],
    "methods": summarise(found),
    "best_epochs": {name: (1 + values.argmax(axis=1)).tolist() for name, values in validation.items()},
    "curves": {what: {name: values.tolist() for name, values in one.items()} for what, one in curves.items()},
  }


def main(argv: Sequence[str]) -> None:
  try:
    beside = [files.read_json(Path(FLAGS.beside) / "overfitting.json")] if FLAGS.beside else []
  except files.CorruptFileError as error:
    sys.exit(f"error: --beside={FLAGS.beside}: {error}")
  runs = {}
  for checkpoint in CHECKPOINTS:
    of = arguments(FLAGS.data, checkpoint, FLAGS.workdir, FLAGS.seeds, FLAGS.jobs, argv[1:])
    if code := compare.main(of):
      sys.exit(code)
    runs[checkpoint] = planned(of)
  title = f"{FLAGS.data}, {LONGER} times as long"
  command = shlex.join(["python", "-m", "benchmarks.overfitting", *sys.argv[1:]])
  said = {"title": title, "command": command, **provenance.commit(), "environment": results.environment()}
  said |= gather(runs)
  text = "\n".join(
    [
      *(f"## {title}", "", "```sh", command, "```", ""),
      f"Commit {said['commit']}. Accuracy in percent on {said['n']:,} test images; robust: under AutoAttack. "
      "Differences in points, with 95 % intervals of a paired bootstrap over seeds and images.",
      "",
      *table(said["methods"], said["best_epochs"]),
      "",
    ]
  )
  workdir = Path(FLAGS.workdir)
  results.write_json(workdir / "overfitting.json", said)
  (workdir / "overfitting.md").write_text(text)
  style.replace(workdir / "overfitting.png", plot([*beside, said]))
  print(text)


if __name__ == "__main__":
  flags.DEFINE_enum("data", "digits", list(PRESETS), "a preset")
  flags.DEFINE_string("workdir", "runs/overfitting", "where the runs and the result live")
  flags.DEFINE_string("beside", "", "the workdir of another data set, whose curves are drawn too")
  flags.DEFINE_string("seeds", "0,1,2", "the seeds")
  flags.DEFINE_integer("jobs", 1, "runs at a time, which share the CPU's cores")
  app.run(main)
