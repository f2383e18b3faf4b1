"""The evaluation of a model: a suite of attacks on a whole split, every image once, sharded over the devices."""

import functools
import hashlib
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh
from jax.tree_util import Partial

from lrat_jax import attacks, data, models, reweighting
from lrat_jax.attacks import eval_state, losses, threat_model
from lrat_jax.config import suites
from lrat_jax.core import microbatch, sharding
from lrat_jax.core.typing import Variables
from lrat_jax.evaluation import examples as examples_lib
from lrat_jax.evaluation import suite_warnings

Evaluator = Callable[[Variables, data.Split, Array], dict[str, np.ndarray]]
# The model, and behind it the one that is attacked, where that is another.
Models = tuple[Partial, ...]
EvaluateBatch = Callable[[Models, Array, dict[str, Array]], dict[str, Array]]
Arrays = dict[str, np.ndarray]

CLEAN = "clean"
# In place of a class, where logits are NaN or infinite.
NO_PREDICTION = -1


class EvaluationError(ValueError):
  """A model or a half-done evaluation that cannot be evaluated; the message is one line that says why."""


class EvaluationResult(NamedTuple):
  """What `run_suite` found; see there for `summary`, `per_example` and `timings`.

  Attributes:
    examples: for each attack.
    images: for each attack the adversarials [n, h, w, c], if they were to be kept.
  """

  summary: dict[str, Any]
  per_example: Arrays
  examples: dict[str, examples_lib.Examples]
  images: Arrays
  timings: dict[str, Any]


class _Job(NamedTuple):
  """What stays the same through a suite."""

  logits_fn: Partial
  attacked_fn: Partial  # what attacks know of the model: the same, unless it is attacked in another type
  split: data.Split
  key: Array
  batch_size: int
  mesh: Mesh
  directory: Path | None
  keep_images: bool
  microbatch_size: int | None
  corrupted: data.CorruptedImages | None
  surrogates: Mapping[str, Partial]
  evaluate_read: EvaluateBatch  # of images that are read, compiled once for all
  on_stage: Callable[[str, attacks.StageSummary], None]
  on_progress: Callable[[str, int, int], None]
  on_kept: Callable[[], None]

  def asked(self, name: str) -> Models:
    """The models of an attack: the one that predicts, and the one that is attacked where that is another."""
    attacked = self.surrogates.get(name, self.attacked_fn)
    return (self.logits_fn,) if attacked is self.logits_fn else (self.logits_fn, attacked)

  def is_read(self, entry: Mapping[str, Any]) -> bool:
    """Whether what an entry of the suite finds is read from files."""
    return self.corrupted is not None and suites.is_corruption(entry)

  def store(self, *below: str) -> eval_state.Store:
    """Where finished work is kept."""
    if self.directory is None:
      return eval_state.NullStore()
    return eval_state.CallbackStore(
      eval_state.MultiHostStore(eval_state.FileStore(self.directory.joinpath(*below))), self.on_kept
    )


def batch_program(attack: attacks.Attack | None, norm: str, mesh: Mesh) -> EvaluateBatch:
  """(asked, key, batch) -> logits, predictions, vulnerabilities, distances and images [batch, ...] under an attack.

  A batch may hold what is "found" already. An image that the attack left NaN is evaluated as it was, and "lost"
  [batch]. Logits that are not finite predict none.
  """

  def evaluate_shard(asked: Models, key: Array, batch: dict[str, Array]) -> dict[str, Array]:
    logits_fn, attacked = asked[0], asked[-1]
    originals, labels = data.to_float(batch["images"]), batch["labels"]
    found = data.to_float(batch.get("found", batch["images"]))
    if attack is not None:
      found = attack(attacks.example_keys(key, batch["indices"]), attacked, originals, labels).images
    lost = ~threat_model.finite(found)
    images = jnp.where(lost[:, None, None, None], originals, found)
    logits = logits_fn(images)
    answered = losses.is_answer(logits)
    return {
      "logits": logits,
      "predictions": jnp.where(answered, jnp.argmax(logits, axis=-1), NO_PREDICTION).astype(jnp.int32),
      "vulnerabilities": jnp.where(answered, reweighting.vulnerability(logits, labels), 1.0),
      "distances": threat_model.length_of(norm)(images - originals),
      "images": images,
      "lost": lost,
    }

  specs = (sharding.REPLICATED, sharding.REPLICATED, sharding.BATCHED)
  return sharding.jit(sharding.shard_map(evaluate_shard, mesh, specs, sharding.BATCHED), mesh)


def make_evaluator(model: nn.Module, attack: attacks.Attack | None, batch_size: int, mesh: Mesh) -> Evaluator:
  """A function (variables, split, key) -> {"correct" [n] bool, "vulnerabilities" [n] float} under one attack.

  `attack` None evaluates the clean images. An image's attack depends on its index under `key` alone, so batch size and
  device count change nothing; the last batch is padded and masked. Compiled once, for every call.
  """
  evaluate_batch, apply = batch_program(attack, "linf", mesh), models.applied(model)

  def evaluate(variables: Variables, split: data.Split, key: Array) -> Arrays:
    results, kept = [], ("predictions", "vulnerabilities")
    key, logits_fn = sharding.replicate(mesh, key), Partial(apply, variables)
    for batch in data.eval_batches(split, batch_size):
      batch = sharding.shard_batch(mesh, batch)
      result = evaluate_batch((logits_fn,), key, batch)
      results.append((*(result[name] for name in kept), batch["mask"]))
    predictions, vulnerabilities, mask = (np.concatenate(x) for x in zip(*sharding.fetch(results), strict=True))
    return {"correct": predictions[mask] == split.labels, "vulnerabilities": vulnerabilities[mask]}

  return evaluate


def _clean(job: _Job, split: data.Split, check: Callable[..., None]) -> tuple[Arrays, str]:
  """The model on a split as it is: "predictions" and "vulnerabilities" [n], and a digest of its logits.

  `check` is shown each batch's logits and labels, and the number of its first image.
  """
  evaluate_batch = batch_program(None, "linf", job.mesh)
  pieces, digest = [], hashlib.sha256()
  for first, batch in zip(itertools.count(0, job.batch_size), data.eval_batches(split, job.batch_size), strict=False):
    batch = sharding.shard_batch(job.mesh, batch)
    result = evaluate_batch((job.logits_fn,), job.key, batch)
    kept = {name: result[name] for name in ("logits", "predictions", "vulnerabilities")}
    piece, mask = sharding.fetch((kept, batch["mask"]))
    piece = {name: array[mask] for name, array in piece.items()}
    check(piece["logits"], split.labels[first : first + job.batch_size], first)
    digest.update(piece.pop("logits").tobytes())
    pieces.append(piece)
  return _joined(pieces), digest.hexdigest()


def _joined(pieces: list[Arrays]) -> Arrays:
  return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _run_batch(
  job: _Job,
  asked: Models,
  evaluate_batch: EvaluateBatch,
  batch: dict[str, Any],
  first: int,
  clean_correct: np.ndarray,
) -> Arrays:
  """One batch of one attack, with the adversarials that are to be kept and their rows of the split."""
  start = time.perf_counter()
  batch = sharding.shard_batch(job.mesh, batch)
  result, mask, labels = sharding.fetch((evaluate_batch(asked, job.key, batch), batch["mask"], batch["labels"]))
  piece = {name: result[name][mask] for name in ("predictions", "vulnerabilities", "distances", "lost")}
  fallen = clean_correct[first : first + len(piece["predictions"])] & (piece["predictions"] != labels[mask])
  kept = np.arange(len(fallen)) if job.keep_images else examples_lib.most_vulnerable(piece["vulnerabilities"], fallen)
  seconds = np.array([time.perf_counter() - start])
  return piece | {"rows": first + kept, "images": result["images"][mask][kept], "seconds": seconds}


def _run_attack(job: _Job, name: str, entry: Mapping[str, Any], clean_correct: np.ndarray) -> Arrays:
  """An attack of the registry on the split, batch by batch, each kept as soon as it is done.

  Where an accelerator's memory is too small, the attack takes half as many images at once, as often as that helps.
  """
  size = job.microbatch_size
  while True:
    try:
      return _attack_split(job, name, entry, clean_correct, size)
    except jax.errors.JaxRuntimeError as error:
      size = microbatch.halved(size or job.batch_size // job.mesh.size, job.mesh, error)


def _build_attack(entry: Mapping[str, Any]) -> attacks.Attack:
  """The attack of an entry; one that takes features gets those of the model that it attacks."""
  attack = attacks.from_config(suites.without_surrogate(entry))
  if not suites.takes_features(entry):
    return attack

  def run(keys: Array, logits_fn: Partial, images: Array, labels: Array) -> attacks.AttackResult:
    return attack(keys, logits_fn, images, labels, features_fn=models.features_of(logits_fn))

  return run


def _attack_split(
  job: _Job, name: str, entry: Mapping[str, Any], clean_correct: np.ndarray, microbatch_size: int | None
) -> Arrays:
  is_read = job.is_read(entry)
  attack = None if is_read else attacks.microbatch(_build_attack(entry), microbatch_size)
  evaluate_batch = job.evaluate_read if is_read else batch_program(attack, entry.get("norm") or "l2", job.mesh)
  asked = job.asked(name)
  pieces, store = [], job.store()
  for index, batch in enumerate(data.eval_batches(job.split, job.batch_size)):
    piece = store.load(f"{name}-{index}")
    if piece is None:
      if is_read:
        batch["found"] = job.corrupted.read(entry["kind"], entry["severity"], batch["indices"])
      piece = _run_batch(job, asked, evaluate_batch, batch, index * job.batch_size, clean_correct)
      store.save(f"{name}-{index}", piece)
    pieces.append(piece)
    job.on_progress(name, min((index + 1) * job.batch_size, len(job.split.labels)), len(job.split.labels))
  result = _joined(pieces)
  return result | {"correct": result["predictions"] == job.split.labels}


def _run_autoattack(
  job: _Job, name: str, entry: Mapping[str, Any], clean: Arrays
) -> tuple[Arrays, attacks.AutoAttackReport]:
  """AutoAttack on the split, in the form of any other attack's result, and its report."""
  start = time.perf_counter()
  split = job.split.in_memory()  # it comes back to images in any order, and keeps what it finds beside them
  try:
    report = attacks.autoattack(
      job.key, job.attacked_fn, split.images, split.labels,
      batch_size=job.batch_size,
      chunk_size=job.microbatch_size,
      devices=list(job.mesh.devices.flat),
      example_indices=split.indices,
      on_stage=functools.partial(job.on_stage, name),
      on_progress=lambda stage, done, total: job.on_progress(f"{name} {stage}", done, total),
      store=job.store(name),
      **suites.autoattack_arguments(entry),
    )  # fmt: skip
  except ValueError as error:
    raise EvaluationError(f"{name}: {error}") from error
  evaluated = _with_fallen(job, clean, report)
  if job.keep_images:
    kept, images = np.arange(len(split.labels)), report.images
  else:
    kept = examples_lib.most_vulnerable(evaluated["vulnerabilities"], report.broken_by > 0)
    images = report.adversarials[np.searchsorted(report.fallen, kept)]
  seconds = sum(summary.seconds for summary in report.per_attack) or time.perf_counter() - start
  # Where the attacked model is another, what broke that one need not break the model.
  same = job.attacked_fn is job.logits_fn
  correct = report.robust if same else evaluated["predictions"] == split.labels
  result = {"correct": correct, "distances": report.distances, "rows": kept, "images": images}
  return evaluated | result | {"seconds": np.array([seconds])}, report


def _with_fallen(job: _Job, clean: Arrays, report: attacks.AutoAttackReport) -> Arrays:
  """What the model says of every image as AutoAttack left it; `clean` is what it says of the clean images."""
  if not len(report.fallen):
    return clean
  fallen, _ = _clean(job, job.split.select(report.fallen)._replace(images=report.adversarials), lambda *_: None)
  evaluated = {name: array.copy() for name, array in clean.items()}
  for name, array in fallen.items():
    evaluated[name][report.fallen] = array
  return evaluated


def _digest(arrays: Any) -> str:
  """Of the content of a tree of arrays."""
  digest = hashlib.sha256()
  for array in jax.tree.leaves(sharding.fetch(arrays)):
    digest.update(np.ascontiguousarray(array).view(np.uint8).data)
  return digest.hexdigest()


def _fingerprint(job: _Job, suite: suites.Suite, seed: int, predictions: str) -> dict[str, str]:
  """What a suite's pieces depend on, by the names under which a store tells that it has changed."""
  read = {entry["kind"] for entry in suite.values() if job.is_read(entry)}
  versions = (
    {"files of config.data.corruptions": str([job.corrupted.version(kind) for kind in sorted(read)])} if read else {}
  )
  if job.attacked_fn is not job.logits_fn:
    versions["type of the attacked network (config.eval.attack_dtype)"] = "another"
  return versions | {
    "images or labels": job.split.fingerprint(),
    "predictions of the model": predictions,
    "attacks (config.eval.suite)": str(sorted((name, sorted(entry.items())) for name, entry in suite.items())),
    **({"surrogate models": _digest(job.surrogates)} if job.surrogates else {}),
    "seed": str(seed),
    "batch size or device": f"{job.batch_size} on {job.mesh.devices.flat[0].device_kind}",
    "choice of images to save": str(job.keep_images),
    "version of jax": jax.__version__,
  }


def _columns(name: str, result: Arrays, clean_correct: np.ndarray) -> Arrays:
  """What per_example holds of one attack."""
  fields = {"vulnerability": "vulnerabilities", "prediction": "predictions", "distance": "distances"}
  columns = {f"robust/{name}": result["correct"] & clean_correct}
  return columns | {f"{field}/{name}": result[source] for field, source in fields.items()}


def _union(per_example: Arrays, names: list[str]) -> Arrays:
  """Over the whole suite: "robust" bool [n]; "broken_by" [n], an index into "stages", -1 where robust."""
  broken_by = np.where(per_example["clean_correct"], -1, 0)
  for number, name in enumerate(names, start=1):
    broken_by = np.where((broken_by == -1) & ~per_example[f"robust/{name}"], number, broken_by)
  return {"robust": broken_by == -1, "broken_by": broken_by, "stages": np.array([CLEAN, *names])}


def _check_models(job: _Job, suite: suites.Suite) -> None:
  """Refuses surrogates that are not there, and a model without the features of an attack. Raises EvaluationError."""
  for name, entry in suite.items():
    if entry.get(suites.SURROGATE) and name not in job.surrogates:
      raise EvaluationError(f"{name}: surrogate={entry[suites.SURROGATE]!r} is a model that was not loaded.")
    if suites.takes_features(entry):
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
  """Clean accuracy and robust accuracy under each attack of a suite, on every image of a split.

  An image counts as robust to an attack if the model is right on it clean and attacked, and as robust to their union if
  that holds for all attacks of the suite.

  Args:
    logits_fn: images -> logits. Wrap parameters as `jax.tree_util.Partial(apply, variables)`, or they are compiled in.
    suite: name -> an attack's configuration, as `attacks.from_config` takes it, or {"name": "autoattack", "norm",
      "epsilon", "version", "attacks_to_run", "overrides"} for `attacks.autoattack`. "lpips" gets the features of the
      model, which must be a `Partial` of `models.applied`.
    num_sanity_examples: how many images `sanity_checks.run_sanity_checks` looks at; 0 is none.
    keep_images: whether all adversarials are returned.
    microbatch_size: how many images an attack takes at once on one device (`models.microbatch_size`); None is a
      device's whole share of a batch, and for AutoAttack its own default.
    directory: keeps finished batches, so that the same call goes on where it was stopped. A batch taken from there
      counts the seconds that it took then.
    corrupted: where the suite's corruptions are read from; None computes them. The split must be of the test split.
    attacked_fn: what the attacks know of the model, as the same network in bfloat16; None is `logits_fn`, which gives
      every verdict, and is what sanity checks look at.
    surrogates: by name of an attack, the logits_fn of another model, on which it is made. What it found is evaluated on
      `logits_fn`. AutoAttack and corruptions take none.
    on_attack: told each attack's name, robust accuracy and seconds as it ends ("clean" first).
    on_stage: told AutoAttack's name and each stage's summary as it ends.
    on_progress: told after each batch the attack's name, for AutoAttack with its stage's, how many images were attacked
      and how many are to be at most.
    on_kept: called after each batch that `directory` has kept; what it raises ends the call, to go on later.

  Returns:
    EvaluationResult. `summary` {"clean", "robust": {name: accuracy}, "union", "n", "warnings", "autoattack": {name:
    [stage, ...]}} is plain data, and so is `timings` {"seconds", "attack_seconds": {name: seconds}, "stage_seconds":
    {name: {stage: seconds}}}; `per_example` maps names to arrays [n]: "indices",
    "labels", "clean_correct", "robust" and "broken_by" over the suite (an index into "stages"; -1
    robust), "robust/NAME" (bool), "vulnerability/NAME", "prediction/NAME" (-1 where the logits were not finite, which
    is no prediction and not robust), "distance/NAME" (of what the attack returned, in
    its norm, or l2), and for AutoAttack "broken_by/NAME" and "stages/NAME".

  Raises:
    EvaluationError: what are no logits of the labels (`attacks.check_logits`), or a directory of another evaluation.
    ConfigError: a device has no memory for `batch_size` images.
  """
  entries = {name: dict(entry) for name, entry in suite.items()}
  as_partial = lambda found: found if isinstance(found, Partial) else Partial(microbatch.any_batch_size(found))
  others = {name: as_partial(other) for name, other in surrogates.items()}
  partial, others, key = sharding.replicate(mesh, (as_partial(logits_fn), others, jax.random.key(seed)))
  attacked = partial if attacked_fn is None else sharding.replicate(mesh, as_partial(attacked_fn))
  told = on_stage, on_progress, on_kept
  evaluate_read = batch_program(None, "l2", mesh)
  job = _Job(
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
  """What a stage did, without how long it took: that alone differs between two runs."""
  return {field: value for field, value in stage._asdict().items() if field not in ("seconds", "images_per_second")}


def _run(job: _Job, suite: suites.Suite, seed: int, num_sanity_examples: int, on_attack) -> EvaluationResult:
  """The clean images, then each attack; then the checks."""
  start = time.perf_counter()
  try:
    clean, digest = _clean(job, job.split, attacks.check_logits)
    job.store().open(_fingerprint(job, suite, seed, digest))
  except data.DataError:  # of a record that is damaged, not of the model
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
      if suites.is_autoattack(entry):
        result, reports[name] = _run_autoattack(job, name, entry, clean)
        broken_by = np.where(result["correct"], -1, np.maximum(reports[name].broken_by, 0))
        per_example |= {f"broken_by/{name}": broken_by, f"stages/{name}": np.array(reports[name].stages)}
      else:
        result = _run_attack(job, name, entry, clean_correct)
    per_example |= _columns(name, result, clean_correct)
    robust[name], seconds[name] = float(np.mean(per_example[f"robust/{name}"])), float(result["seconds"].sum())
    lost[name] = int(np.sum(result.get("lost", 0)))  # AutoAttack mends its own, and warns
    examples[name] = examples_lib.choose(result, clean_correct & ~per_example[f"robust/{name}"])
    if job.keep_images:
      images[name] = result["images"]
    on_attack(name, robust[name], seconds[name])
  per_example |= _union(per_example, list(suite))
  few = job.split.take(np.arange(min(num_sanity_examples, len(job.split.labels))))
  # On one device: this is a small batch, and the checks ask for their results one after another.
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
