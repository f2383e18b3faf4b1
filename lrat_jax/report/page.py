"""The page: the data of the runs, rendered with the template."""

import base64
import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from lrat_jax.analysis import inspection, plots
from lrat_jax.analysis.plots.style import COLOURS
from lrat_jax.compare import summary
from lrat_jax.core.text import seconds_text
from lrat_jax.report import methods as methods_lib
from lrat_jax.report import pictures, repeat, runs, tables, words
from lrat_jax.report.methods import MethodRuns
from lrat_jax.report.pictures import Chart
from lrat_jax.report.runs import Run

# What a run's folder may lack, and the line on the page that says so.
_MISSING = {
  "results": "No results.json: this run was trained but not evaluated. Use --mode=evaluate to evaluate it.",
  "per_example": "No per_example.npz: there are no results for single images.",
  "timings": "No timings.json: seconds of evaluation are not shown.",
  "rows": "No metrics.jsonl: there are no training curves.",
  "weights": "No weights/epoch_*.npz: there are no weights to show.",
}
_SAME_WEIGHTS = {"natural": "Local weights are the same in all pairs.", "across": "All pairs have the same weight."}
# The largest number of classes for which weights by class are drawn; more would not be readable.
_MOST_CLASSES = 30
_EVALUATED_ONLY = "This model was evaluated but not trained here: there are no training curves and no recorded weights."
_OPTIMISERS = {"sgd": "SGD", "adamw": "AdamW"}


class Agreement(NamedTuple):
  """How much a run's attacks agree on which images are vulnerable."""

  names: list[str]
  count: int  # type: ignore[assignment]  # of images, not the method of tuples
  correlations: list[list[tables.Cell]]
  crossed: list[list[tables.Cell]]
  chart: Chart


class View(NamedTuple):
  """One run as the page shows it, representing its method."""

  method: MethodRuns
  run: Run
  description: str
  facts: dict[str, str]
  changes: list[repeat.Change]
  commands: list[str]
  configuration: str
  missing: list[str]
  rows: list[tables.Row]
  accuracy_chart: Chart | None
  weights: list[Chart]
  same_weights: list[str]
  agreement: Agreement | None
  examples: list[pictures.Example]
  drawn: dict[str, str]


def _missing(run: Run) -> list[str]:
  lines = dict(_MISSING)
  if run.config is None:
    lines = {name: line for name, line in lines.items() if name not in ("rows", "weights")}
  if run.results is None:
    lines = {name: line for name, line in lines.items() if name not in ("per_example", "timings")}
  if run.config is not None and not run.config.train.num_logged_examples:
    lines["weights"] = "No weights were recorded: train.num_logged_examples is 0."
  found = [line for name, line in lines.items() if not getattr(run, name)]
  return [_EVALUATED_ONLY, *found] if run.config is None else found


def _facts(method: MethodRuns, run: Run) -> dict[str, str]:
  """Facts about training and evaluation: name -> text."""
  facts: dict[str, str] = {}
  if run.config is not None:
    config, optimizer = run.config, run.config.optimizer
    seconds = summary.training_seconds(run.workdir, run.batch_size)
    epochs = 1 + max((row["epoch"] for row in run.rows), default=-1)
    facts |= {
      "Data": config.data.source,
      "Model": config.model.name + ("" if config.model.dtype == "auto" else f", {config.model.dtype} precision"),
      "Training attacks": words.training_attacks(config),
      "Epochs": f"{config.train.epochs}" + (f", of which {epochs} are done" if epochs < config.train.epochs else ""),
      "Batch": f"{config.data.batch_size} images",
      "Optimiser": f"{_OPTIMISERS[optimizer.name]}, learning rate {optimizer.learning_rate:g}, {optimizer.schedule}",
      "Training time": "" if seconds is None else seconds_text(seconds),
    }
  facts["Seed" if len(method.runs) == 1 else "Seeds"] = ", ".join(str(one.seed) for one in method.runs)
  if run.results is not None:
    results, environment = run.results, dict(run.results["environment"])
    device = environment.pop("device", "unknown")
    facts |= {
      "Data": results["dataset"],
      "Evaluated": f"{results['n']:,} {results['split']} images"
      + (f", the weights of step {results['step']:,}" if "step" in results else ""),
      "Evaluation time": "" if run.timings is None else seconds_text(run.timings["seconds"]),
      "Device": f"{environment.pop('num_devices', 1)} x {device}",
      "Versions": ", ".join(f"{name} {version}" for name, version in environment.items()),
    }
  return {name: text for name, text in facts.items() if text}


def _agreement(run: Run, name: str) -> Agreement | None:
  """The agreement of a run's attacks; None if they cannot be compared."""
  if run.per_example is None:
    return None
  names = [name for name in inspection.attack_names(run.per_example) if name in run.results["robust"]]
  if len(names) < 2 or not run.per_example["clean_correct"].any():
    return None
  found = inspection.inconsistency(run.per_example, names)
  note = f"{found.count:,} images that are right when clean, a point each. Above 0: fooled."
  chart = pictures.chart(plots.plot_least_correlated(found, run.per_example, name), note)
  return Agreement(found.names, found.count, tables.correlations(found), tables.crossed(found), chart)


def _weight_charts(run: Run, name: str) -> tuple[list[Chart], list[str]]:
  """The charts of a run's weights, and a line for each kind of weight that is the same for all images."""
  if run.weights is None:
    return [], []
  figures, same = [plots.plot_weight_distributions(run.weights, name)], []
  for field, line in _SAME_WEIGHTS.items():
    if inspection.first_difference(run.weights, field) is None:
      same.append(line)
    elif len(inspection.by_class(run.weights, field).groups) <= _MOST_CLASSES:
      figures.append(plots.plot_weights_by_class(run.weights, name, field))
  return list(map(pictures.chart, figures)), same


def _training_chart(methods: Sequence[MethodRuns]) -> Chart | None:
  """The training curves of one run, or of several runs in one chart; None if no run has any."""
  rows = {method.name: [run.rows for run in method.runs if run.rows] for method in methods}
  rows = {name: mine for name, mine in rows.items() if mine}
  if not rows:
    return None
  if sum(len(method.runs) for method in methods) > 1:
    return pictures.chart(plots.plot_training_compared(rows))
  ((name, (only,)),) = rows.items()
  return pictures.chart(
    plots.plot_training_curves(only, name), "The dot: the best in validation, whose weights are kept."
  )


def _drawn(run: Run, examples: Sequence[pictures.Example], alone: bool) -> dict[str, str]:
  """Plots drawn by the run that the page cannot draw because it has no images; fewer if there are several runs."""
  stems = ["most_moved"] * alone + ["worst_examples"] * (not examples)
  found = {stem: runs.drawn(run, stem) for stem in stems}
  return {stem: pictures.file_uri(path) for stem, path in found.items() if path is not None}


def _view(method: MethodRuns, *, alone: bool) -> View:
  """The view of a method, from its first run; `alone`: the page shows only this run."""
  run = method.runs[0]
  rows = tables.accuracies(run) if run.results is not None else []
  weight_charts, same = _weight_charts(run, method.name)
  accuracies = {row.name: (row.accuracy.value, row.accuracy.low, row.accuracy.high) for row in rows}
  examples = pictures.worst(run)
  return View(
    method=method,
    run=run,
    description="" if run.config is None else words.method(run.config),
    facts=_facts(method, run),
    changes=[change for change in method.changes or () if change.field != "seed"],
    commands=method.commands,
    configuration=runs.configuration_text(run),
    missing=_missing(run),
    rows=rows,
    accuracy_chart=pictures.chart(plots.plot_accuracies(accuracies, method.name)) if rows and alone else None,
    weights=weight_charts,
    same_weights=same,
    agreement=_agreement(run, method.name),
    examples=examples,
    drawn=_drawn(run, examples, alone),
  )


def _hash(script: str) -> str:
  """The hash that identifies a script in a content security policy."""
  return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _template() -> jinja2.Template:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("lrat_jax.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.get_template("report.html")


def _own(name: str) -> Markup:
  """A file of the package that is inserted into the page unchanged."""
  return Markup((Path(inspect.getfile(runs)).parent / "templates" / name).read_text(encoding="utf-8"))


def _context(found: Sequence[Run]) -> dict[str, Any]:
  grouped = methods_lib.group(found)
  evaluated = methods_lib.evaluated(grouped)
  several = len(found) > 1
  compared = None
  if several and evaluated:
    compared = tables.compare(grouped, evaluated, methods_lib.summarise(evaluated))
  suites_of = [run.results["suite"] for run in found if run.results]
  return {
    "several": several,
    "views": [_view(method, alone=not several) for method in grouped],
    "compared": compared,
    "resampled": summary.resampled(compared.summary) if compared else None,
    "compared_chart": pictures.chart(plots.plot_comparison(compared.summary)) if compared else None,
    "training": _training_chart(grouped),
    "left_out": [str(run.workdir) for run in found if run.per_example is None] if several else [],
    "not_shared": sorted({name for suite in suites_of for name in suite} - set(compared.summary["suite"]))
    if compared
    else [],
    "warnings": tables.warnings(grouped),
    "num_results": sum(run.results is not None for run in found),
    "checked": any(run.config is None or run.config.eval.num_sanity_examples for run in found if run.results),
    "glossary": words.glossary(entry["name"] for suite in suites_of for entry in suite.values()),
  }


def render(workdirs: Sequence[Path]) -> str:
  """Renders the whole page for one run or several. The same runs give the same page, to the byte.

  Raises:
    ConfigError: a folder is not that of a run or is named twice, or a run was evaluated on other images than the first.
    files.CorruptFileError: a file is damaged or not in the form that a run writes.
  """
  context = _context([runs.read(workdir) for workdir in workdirs])
  script = _own("report.js")
  return _template().render(
    **context,
    colours=COLOURS,
    style=_own("report.css"),
    script=script,
    hashes=_hash(script),
    percent=tables.percent,
  )
