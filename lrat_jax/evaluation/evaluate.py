"""The evaluation of a model: a suite of attacks on a whole split, every image once, sharded over the devices."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.tree_util import Partial

from lrat_jax import attacks, data, models
from lrat_jax.config import attack_entries, suites
from lrat_jax.core import microbatch, sharding
from lrat_jax.core.errors import EvaluationError
from lrat_jax.evaluation import examples as examples_lib
from lrat_jax.evaluation import suite_warnings
from lrat_jax.evaluation.batches import Arrays, batch_program
from lrat_jax.evaluation.entries import KEPT, Job, run_clean, run_entry

CLEAN = "clean"


class EvaluationResult(NamedTuple):
  """The result of `run_suite`, whose docstring explains `summary`, `per_example` and `timings`.

  Attributes:
    examples: a few images that the attack broke, for each attack.
    images: all adversarials [n, h, w, c] for each attack, if `keep_images` was True.
  """

  summary: dict[str, Any]
  per_example: Arrays
  examples: dict[str, examples_lib.Examples]
  images: Arrays
  timings: dict[str, Any]


def _digest(job: Job, logits_fn: Partial) -> str:
  """A digest of another model's logits on the clean images: of all that decides them, also of a function's code."""
  return run_clean(job._replace(logits_fn=logits_fn), job.split, lambda *_: None)[1]


def _fingerprint(job: Job, suite: suites.Suite, seed: int, predictions: str) -> dict[str, str]:
  """What the saved pieces of a suite depend on, under the names that a store's error message reports."""
  read = {entry["kind"] for entry in suite.values() if job.is_read(entry)}
  versions = (
    {"files of config.data.corruptions": str([job.corrupted.version(kind) for kind in sorted(read)])} if read else {}
  )
  if job.attacked_fn is not job.logits_fn:
    versions["predictions of the attacked network (config.eval.attack_dtype)"] = _digest(job, job.attacked_fn)
  return versions | {
    "images or labels": job.split.fingerprint(),
    "predictions of the model": predictions,
    "attacks (config.eval.suite)": str(sorted((name, sorted(entry.items())) for name, entry in suite.items())),
    **{f"predictions of the surrogate of {name}": _digest(job, other) for name, other in job.surrogates.items()},
    "seed": str(seed),
    "batch size or device": f"{job.batch_size} on {job.mesh.devices.flat[0].device_kind}",
    "choice of images to save": str(job.keep_images),
    "arrays of a finished batch": ", ".join(KEPT),
    "version of jax": jax.__version__,
  }


def _columns(name: str, result: Arrays, clean_correct: np.ndarray) -> Arrays:
  """The arrays of per_example for one attack."""
  fields = {"vulnerability": "vulnerabilities", "prediction": "predictions", "distance": "distances"}
  columns = {f"robust/{name}": result["correct"] & clean_correct}
  return columns | {f"{field}/{name}": result[source] for field, source in fields.items()}


def _union(per_example: Arrays, names: list[str]) -> Arrays:
  """Over the whole suite: "robust" bool [n]; "broken_by" [n], an index into "stages", -1 if robust."""
  broken_by = np.where(per_example["clean_correct"], -1, 0)
  for number, name in enumerate(names, start=1):
    broken_by = np.where((broken_by == -1) & ~per_example[f"robust/{name}"], number, broken_by)
  return {"robust": broken_by == -1, "broken_by": broken_by, "stages": np.array([CLEAN, *names])}


def _check_models(job: Job, suite: suites.Suite) -> None:
  """Raises EvaluationError if a surrogate is missing, or if a model lacks the features that an attack needs."""
  for name, entry in suite.items():
    if entry.get(attack_entries.SURROGATE) and name not in job.surrogates:
      raise EvaluationError(f"{name}: surrogate={entry[attack_entries.SURROGATE]!r} is a model that was not loaded.")
    if attack_entries.takes_features(entry):
      images = jax.ShapeDtypeStruct((1, *job.split.images.shape[1:]), jnp.float32)
      try:
        jax.eval_shape(models.features_of(job.asked(name)[-1]), images)
      except ValueError as error:
        raise EvaluationError(f"{name}: {error}") from None


def run_suite(
  logits_fn: Callable[[Array], Array],
  split: data.Split,
  suite: Mapping[str, Mapping[str, Any]],
  *,
  batch_size: int,
  mesh: Mesh,
  seed: int,
  num_sanity_examples: int = 0,
  keep_images: bool = False,
  microbatch_size: int | None = None,
  directory: Path | None = None,
  corrupted: data.CorruptedImages | None = None,
  attacked_fn: Callable[[Array], Array] | None = None,
  surrogates: Mapping[str, Callable[[Array], Array]] = MappingProxyType({}),
  on_attack: Callable[[str, float, float], None] = lambda name, accuracy, seconds: None,
  on_stage: Callable[[str, attacks.StageSummary], None] = lambda name, summary: None,
  on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
  on_kept: Callable[[], None] = lambda: None,
) -> EvaluationResult:
  """Evaluates clean accuracy, and robust accuracy under each attack of a suite, on every image of a split.

  An image is robust to an attack if the model is right on both the clean and the attacked image. It is robust to the
  union if that holds for all attacks of the suite.

  Args:
    logits_fn: images -> logits. Wrap parameters as `jax.tree_util.Partial(apply, variables)`, or they are compiled in.
    suite: name -> an attack's configuration, as `attacks.from_config` takes it, or {"name": "autoattack", "norm",
      "epsilon", "version", "attacks_to_run", "overrides"} for `attacks.autoattack`. "lpips" uses the features of the
      model, which must be a `Partial` of `models.applied`.
    num_sanity_examples: the number of images that `sanity_checks.run_sanity_checks` uses; 0: none.
    keep_images: whether to return all adversarials.
    microbatch_size: the number of images that an attack processes at once on one device (`models.microbatch_size`);
      None: a device's whole share of a batch, and for AutoAttack its own default.
    directory: where finished batches are saved, so that the same call resumes after a stop. A batch loaded from there
      counts with the seconds that it took originally.
    corrupted: the files from which the suite's corruptions are read; then `split` must be of the test split. None: the
      corruptions are computed.
    attacked_fn: the model that attacks use, such as the same network in bfloat16; None: `logits_fn`. All final
      predictions and the sanity checks use `logits_fn`. Images that break only `attacked_fn` are attacked again on
      `logits_fn`.
    surrogates: name of an attack -> the logits_fn of another model, on which the attack is run. Its adversarials are
      then evaluated on `logits_fn`. AutoAttack and corruptions do not support surrogates.
    on_attack: called with each attack's name, robust accuracy and seconds when it ends ("clean" first).
    on_stage: called with AutoAttack's name and each stage's summary when the stage ends.
    on_progress: called after each batch with the attack's name (for AutoAttack, followed by the stage's), the number of
      images attacked so far, and the largest number that will be attacked.
    on_kept: called after each batch that was saved in `directory`; an exception that it raises ends the call, which can
      be resumed later.

  Returns:
    EvaluationResult. `summary` {"clean", "robust": {name: accuracy}, "union", "n", "warnings", "autoattack": {name:
    [stage, ...]}} is plain data, and so is `timings` {"seconds", "attack_seconds": {name: seconds}, "stage_seconds":
    {name: {stage: seconds}}}; `per_example` maps names to arrays [n]: "indices", "labels", "clean_correct", "robust"
    and "broken_by" over the suite (an index into "stages"; -1: robust), "robust/NAME" (bool), "vulnerability/NAME",
    "prediction/NAME" (-1 if the logits were not finite: no prediction, and not robust), "distance/NAME" (from the clean
    image to the one that the attack returned, in its norm, or in l2 if it has none), and for AutoAttack
    "broken_by/NAME" and "stages/NAME".

  Raises:
    EvaluationError: invalid logits (`attacks.check_logits`), a surrogate that was not loaded, a model without the
      features that an attack needs, or a directory with a different evaluation.
    ConfigError: a device's memory is too small for `batch_size` images.
  """
  entries = {name: dict(entry) for name, entry in suite.items()}
  as_partial = lambda found: found if isinstance(found, Partial) else Partial(microbatch.any_batch_size(found))
  others = {name: as_partial(other) for name, other in surrogates.items()}
  partial, others, key = sharding.replicate(mesh, (as_partial(logits_fn), others, jax.random.key(seed)))
  attacked = partial if attacked_fn is None else sharding.replicate(mesh, as_partial(attacked_fn))
  told = on_stage, on_progress, on_kept
  evaluate_read = batch_program(None, "l2", mesh)
  job = Job(
    partial,
    attacked,
    split,
    key,
    batch_size,
    mesh,
    directory,
    keep_images,
    microbatch_size,
    corrupted,
    others,
    evaluate_read,
    *told,
  )
  _check_models(job, entries)
  with sharding.memory_for("config.eval.batch_size", batch_size, mesh):
    return _run(job, entries, seed, num_sanity_examples, on_attack)


def _untimed(stage: attacks.StageSummary) -> dict[str, Any]:
  """A stage's summary without its timings, the only fields that differ between two runs."""
  return {field: value for field, value in stage._asdict().items() if field not in ("seconds", "images_per_second")}


def _run(job: Job, suite: suites.Suite, seed: int, num_sanity_examples: int, on_attack) -> EvaluationResult:
  """Evaluates the clean images, then runs each attack, then the sanity checks."""
  start = time.perf_counter()
  try:
    clean, digest = run_clean(job, job.split, attacks.check_logits)
    job.store().open(_fingerprint(job, suite, seed, digest))
  except data.DataError:  # a damaged record of the data, not a fault of the model
    raise
  except ValueError as error:
    raise EvaluationError(str(error)) from None
  clean_correct = clean["predictions"] == job.split.labels
  per_example = {"indices": job.split.indices, "labels": job.split.labels, "clean_correct": clean_correct}
  per_example |= {f"prediction/{CLEAN}": clean["predictions"], f"vulnerability/{CLEAN}": clean["vulnerabilities"]}
  robust, lost, seconds, examples, images, reports = {}, {}, {CLEAN: time.perf_counter() - start}, {}, {}, {}
  on_attack(CLEAN, float(np.mean(clean_correct)), seconds[CLEAN])
  for name, entry in suite.items():
    with jax.profiler.TraceAnnotation(name):
      result, report = run_entry(job, name, entry, clean, clean_correct)
    if report is not None:
      reports[name] = report
      per_example |= {f"broken_by/{name}": result["broken_by"], f"stages/{name}": np.array(report.stages)}
    per_example |= _columns(name, result, clean_correct)
    robust[name], seconds[name] = float(np.mean(per_example[f"robust/{name}"])), float(result["seconds"].sum())
    lost[name] = int(np.sum(result.get("lost", 0)))  # AutoAttack replaces NaN itself, and warns
    examples[name] = examples_lib.choose(result, clean_correct & ~per_example[f"robust/{name}"])
    if job.keep_images:
      images[name] = result["images"]
    on_attack(name, robust[name], seconds[name])
  per_example |= _union(per_example, list(suite))
  few = job.split.take(np.arange(min(num_sanity_examples, len(job.split.labels))))
  # On one device, because the batch is small and the checks fetch their results one after another.
  on_one = sharding.to_own_device(job.logits_fn)
  summary = {
    "clean": float(np.mean(clean_correct)),
    "robust": robust,
    "union": float(np.mean(per_example["robust"])),
    "n": len(job.split.labels),
    "warnings": [
      *suite_warnings.prediction_warnings(per_example, lost),
      *suite_warnings.warnings(on_one, few, suite, reports),
    ],
    "autoattack": {name: [_untimed(stage) for stage in report.per_attack] for name, report in reports.items()},
  }
  timings = {
    "seconds": sum(seconds.values()),
    "attack_seconds": seconds,
    "stage_seconds": {
      name: {stage.name: stage.seconds for stage in report.per_attack} for name, report in reports.items()
    },
  }
  return EvaluationResult(summary, per_example, examples, images, timings)
