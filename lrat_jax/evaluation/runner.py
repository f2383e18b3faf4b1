"""Evaluates a model with a configuration and writes all files of the evaluation to a workdir."""

import contextlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lrat_jax import attacks, data
from lrat_jax.core import distributed, files, provenance
from lrat_jax.core.errors import ConfigError, EvaluationError, Preempted
from lrat_jax.core.text import seconds_text
from lrat_jax.evaluation import evaluate as evaluate_lib
from lrat_jax.evaluation import examples, metrics
from lrat_jax.evaluation import results as results_lib

# The folder of finished batches of an evaluation in progress; it is removed when the evaluation is complete.
PROGRESS = "eval_progress"

Draw = Callable[[Path, str, data.Split, evaluate_lib.EvaluationResult], None]


def results_folder(workdir: Path, config: ConfigDict) -> Path:
  """The folder of the results of config.eval's checkpoint on its split: the workdir for "best" on "test"."""
  of_checkpoint = workdir if config.eval.checkpoint == "best" else workdir / config.eval.checkpoint
  return of_checkpoint if config.eval.split == "test" else of_checkpoint / config.eval.split


def read_references(path: str, suite: Collection[str]) -> dict[str, float]:
  """Reads the best known accuracies from a JSON file {attack: accuracy}; empty if `path` is empty.

  Raises:
    ConfigError: no such file, another form, accuracies outside (0, 1], or none for any attack of the suite.
  """
  if not path:
    return {}
  where = f"config.eval.references={path!r}"
  try:
    found = files.read_json(Path(path).expanduser())
  except files.CorruptFileError as error:
    raise ConfigError(f"{where}: {error}") from None
  is_share = lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
  for name, value in found.items():
    if not is_share(value):
      raise ConfigError(f"{where}: {name!r} has {value!r}; a best known accuracy must be in (0, 1].")
  if not set(found) & set(suite):
    raise ConfigError(f"{where} contains only {sorted(found)}, none of which is in the suite, {sorted(suite)}.")
  return found


def evaluate(
  config: ConfigDict,
  logits_fn: Callable[[Array], Array],
  dataset: data.Dataset,
  mesh: Mesh,
  workdir: Path,
  console: Console,
  *,
  about: dict[str, Any],
  attacked_fn: Callable[[Array], Array] | None = None,
  stop: Callable[[], bool] = lambda: False,
  microbatch_size: int | None = None,
  surrogates: Mapping[str, Callable[[Array], Array]] = MappingProxyType({}),
  draw: Draw | None = None,
) -> dict[str, Any]:
  """Runs config.eval's suite on its split; prints a table, writes results.json, timings.json, per_example.npz, plots.

  The files are in `results_folder`: `workdir`, or a folder in it with the name of the checkpoint or split. Batches that
  an interrupted evaluation finished are loaded from the folder "eval_progress" next to the files.

  Args:
    about: "name" and whatever else belongs in the results, such as the whole configuration if it trained the model.
    attacked_fn: as in `evaluate.run_suite`.
    stop: called after every batch, on every process; if it returns True, the call ends, and a later call resumes there.
    microbatch_size, surrogates: as in `evaluate.run_suite`.
    draw: draws the plots, from the folder, the name, the split and the evaluation's result.

  Returns: the content of results.json.

  Raises:
    ConfigError: the model's logits are not finite, or "eval_progress" is from a different evaluation.
    Preempted: `stop` returned True.
  """

  def check_stop() -> None:
    if stop():
      raise Preempted("Stopped during the evaluation, with all finished batches saved")

  suite = config.eval.suite.to_dict()
  references = read_references(config.eval.references, suite)
  split = data.for_evaluation(dataset.evaluated(config.eval.split, config.eval.num_images))
  workdir = results_folder(workdir, config)
  workdir.mkdir(parents=True, exist_ok=True)
  progress = workdir / PROGRESS
  say = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)
  try:
    with _progress_bar(console) as show:
      evaluation = evaluate_lib.run_suite(
        logits_fn,
        split,
        suite,
        batch_size=config.eval.batch_size,
        mesh=mesh,
        seed=config.seed,
        num_sanity_examples=config.eval.num_sanity_examples,
        keep_images=config.eval.save_images,
        microbatch_size=microbatch_size,
        directory=progress,
        corrupted=dataset.corrupted,
        attacked_fn=attacked_fn,
        surrogates=surrogates,
        on_kept=check_stop,
        on_attack=lambda name, accuracy, seconds: say(f"{name}: {100 * accuracy:.2f} % in {seconds_text(seconds)}"),
        on_stage=lambda name, stage: say(f"  {name} {stage_text(stage)}"),
        on_progress=show,
      )
  except EvaluationError as error:
    raise ConfigError(str(error)) from error
  results = provenance.stamp() | about | evaluation.summary | _circumstances(config, suite)
  # The configuration's training attacks are used only if the model was trained with this configuration.
  train_attacks = config.train_attacks.to_dict() if "config" in about else None
  results |= metrics.summary(suite, evaluation.per_example, train_attacks, references)
  if not distributed.is_primary():
    return results
  _write(config, workdir, results, evaluation, split, about)
  if draw is not None:
    draw(workdir, str(about["name"]), split, evaluation)
  results_lib.write_results(workdir, results, evaluation.timings, evaluation.per_example)
  shutil.rmtree(progress, ignore_errors=True)
  results_lib.print_table(console, results, evaluation.timings["attack_seconds"])
  return results


@contextlib.contextmanager
def _progress_bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
  """Shows an attack's progress and the longest time left: yields a function (name, images done, images in all)."""
  count = TextColumn("{task.completed}/{task.total} images")
  columns = TextColumn("{task.description}"), BarColumn(bar_width=10), count, TimeRemainingColumn(), TextColumn("left")
  with Progress(*columns, console=console, transient=True) as bar:
    tasks: dict[str, TaskID] = {}

    def show(name: str, done: int, total: int) -> None:
      if name not in tasks:
        for earlier in tasks.values():
          bar.update(earlier, visible=False)
        tasks[name] = bar.add_task(name, total=total)
      bar.update(tasks[name], completed=done, total=total)

    yield show


def _circumstances(config: ConfigDict, suite: dict[str, Any]) -> dict[str, Any]:
  """The part of results.json that says how the evaluation was run."""
  return {
    "suite": suite,
    "threat_models": results_lib.radii(suite),
    "seed": config.seed,
    "dataset": config.data.source,
    "split": config.eval.split,
    **({"image_list": config.eval.image_list} if config.eval.image_list else {}),
    "environment": results_lib.environment(),
  }


def _write(
  config: ConfigDict,
  workdir: Path,
  results: dict[str, Any],
  evaluation: evaluate_lib.EvaluationResult,
  split: data.Split,
  about: dict[str, Any],
) -> None:
  """Writes the files of an evaluation except those of `results.write_results`."""
  if config.eval.save_images:
    results_lib.write_images(workdir, evaluation.images, split.indices)
  if config.eval.robustbench:
    dataset = config.data.source.partition(":")[2] or config.data.source
    architecture = about.get("architecture", about.get("model", config.model.name))
    results_lib.write_robustbench(workdir, results, dataset=dataset, architecture=architecture)
  shown = examples.to_arrays(split, evaluation.examples, evaluation.per_example)
  results_lib.write_worst_examples(workdir, shown)


def stage_text(stage: attacks.StageSummary) -> str:
  """One stage of AutoAttack as text: "apgd-ce: 41.20 % robust, 62 of 268 broken in 20 s, 13 images/s"."""
  return (
    f"{stage.name}: {100 * stage.robust_accuracy:.2f} % robust, {stage.broken:,} of {stage.attacked:,} broken in "
    f"{seconds_text(stage.seconds)}, {stage.images_per_second:,.0f} images/s"
  )
