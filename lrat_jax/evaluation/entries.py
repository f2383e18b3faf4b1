"""Evaluates one entry of a suite on a split: the clean images, an attack, or AutoAttack, in pieces that are saved."""

import functools
import hashlib
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.tree_util import Partial

from lrat_jax import attacks, data, models
from lrat_jax.attacks import eval_state
from lrat_jax.config import attack_entries
from lrat_jax.core import microbatch, sharding
from lrat_jax.core.errors import EvaluationError
from lrat_jax.evaluation import examples as examples_lib
from lrat_jax.evaluation.batches import Arrays, EvaluateBatch, Models, batch_program

# The arrays that are kept of each batch under an attack.
KEPT = ("predictions", "vulnerabilities", "distances", "lost", "deceived")


class Job(NamedTuple):
  """What all entries of a suite share."""

  logits_fn: Partial
  attacked_fn: Partial  # the model that attacks use: `logits_fn`, unless it is attacked in another dtype
  split: data.Split
  key: Array
  batch_size: int
  mesh: Mesh
  directory: Path | None
  keep_images: bool
  microbatch_size: int | None
  corrupted: data.CorruptedImages | None
  surrogates: Mapping[str, Partial]
  evaluate_read: EvaluateBatch  # evaluates images that are read from files; compiled once
  on_stage: Callable[[str, attacks.StageSummary], None]
  on_progress: Callable[[str, int, int], None]
  on_kept: Callable[[], None]

  def asked(self, name: str) -> Models:
    """The models of an attack: the evaluated model, followed by the attacked model if that is a different one."""
    attacked = self.surrogates.get(name, self.attacked_fn)
    return (self.logits_fn,) if attacked is self.logits_fn else (self.logits_fn, attacked)

  def is_read(self, entry: Mapping[str, Any]) -> bool:
    """Whether the corrupted images of an entry are read from files."""
    return self.corrupted is not None and attack_entries.is_corruption(entry)

  def store(self, *below: str) -> eval_state.Store:
    """The store for finished work."""
    if self.directory is None:
      return eval_state.NullStore()
    return eval_state.CallbackStore(
      eval_state.MultiHostStore(eval_state.FileStore(self.directory.joinpath(*below))), self.on_kept
    )


def run_clean(job: Job, split: data.Split, check: Callable[..., None]) -> tuple[Arrays, str]:
  """Evaluates a split without attack: "predictions" and "vulnerabilities" [n], and a digest of the logits.

  `check` is called with each batch's logits and labels, and the position of its first image.
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
  job: Job,
  asked: Models,
  evaluate_batch: EvaluateBatch,
  batch: dict[str, Any],
  first: int,
  clean_correct: np.ndarray,
) -> Arrays:
  """Runs one attack on one batch. The result includes the adversarials to keep and their rows of the split."""
  start = time.perf_counter()
  batch = sharding.shard_batch(job.mesh, batch)
  result, mask, labels = sharding.fetch((evaluate_batch(asked, job.key, batch), batch["mask"], batch["labels"]))
  piece = {name: result[name][mask] for name in KEPT}
  fallen = clean_correct[first : first + len(piece["predictions"])] & (piece["predictions"] != labels[mask])
  kept = np.arange(len(fallen)) if job.keep_images else examples_lib.most_vulnerable(piece["vulnerabilities"], fallen)
  seconds = np.array([time.perf_counter() - start])
  return piece | {"rows": first + kept, "images": result["images"][mask][kept], "seconds": seconds}


def run_entry(
  job: Job, name: str, entry: Mapping[str, Any], clean: Arrays, clean_correct: np.ndarray
) -> tuple[Arrays, attacks.AutoAttackReport | None]:
  """Runs an attack, or AutoAttack, on the split. Returns its result, and AutoAttack's report.

  If attacks run on the network in another dtype, some images break only that network, with or without an attack. They
  are attacked again, on the evaluated network: an attack that is finished with an image does not change it further.
  """
  result, report = _run(job, name, entry, clean, clean_correct)
  rows = np.flatnonzero(result.pop("deceived") & clean_correct)
  if rows.size and name not in job.surrogates:
    few = job._replace(
      split=job.split.select(rows),
      attacked_fn=job.logits_fn,
      directory=job.directory and job.directory / "again" / name,
      on_stage=lambda *_: None,
    )
    few.store().open({"images that are attacked again": str(rows.tolist())})
    again, _ = _run(few, name, entry, {field: array[rows] for field, array in clean.items()}, clean_correct[rows])
    result = _replaced(result, again, rows)
  return result, report


def _run(
  job: Job, name: str, entry: Mapping[str, Any], clean: Arrays, clean_correct: np.ndarray
) -> tuple[Arrays, attacks.AutoAttackReport | None]:
  if attack_entries.is_autoattack(entry):
    return _run_autoattack(job, name, entry, clean)
  return _run_attack(job, name, entry, clean_correct), None


def _replaced(result: Arrays, again: Arrays, rows: np.ndarray) -> Arrays:
  """An attack's result with that of a second run on some rows of the split in its place."""
  replaced = {"seconds": np.concatenate([result["seconds"], again["seconds"]])}
  kept = ~np.isin(result["rows"], rows)
  places = np.concatenate([result["rows"][kept], rows[again["rows"]]])
  order = np.argsort(places)
  replaced["rows"] = places[order]
  replaced["images"] = np.concatenate([result["images"][kept], again["images"]])[order]
  for field in result.keys() - replaced.keys():
    replaced[field] = result[field].copy()
    replaced[field][rows] = again[field]
  return replaced


def _run_attack(job: Job, name: str, entry: Mapping[str, Any], clean_correct: np.ndarray) -> Arrays:
  """Runs an attack of the registry on the split, batch by batch; each batch is saved as soon as it is finished.

  If an accelerator runs out of memory, the number of images at once is halved, repeatedly if needed.
  """
  size = job.microbatch_size
  while True:
    try:
      return _attack_split(job, name, entry, clean_correct, size)
    except jax.errors.JaxRuntimeError as error:
      size = microbatch.halved(size or job.batch_size // job.mesh.size, job.mesh, error)


def _build_attack(entry: Mapping[str, Any]) -> attacks.Attack:
  """The attack of an entry; if it needs features, it gets those of the attacked model."""
  attack = attacks.from_config(attack_entries.without_surrogate(entry))
  if not attack_entries.takes_features(entry):
    return attack

  def run(keys: Array, logits_fn: Partial, images: Array, labels: Array) -> attacks.AttackResult:
    return attack(keys, logits_fn, images, labels, features_fn=models.features_of(logits_fn))

  return run


def _attack_split(
  job: Job, name: str, entry: Mapping[str, Any], clean_correct: np.ndarray, microbatch_size: int | None
) -> Arrays:
  is_read = job.is_read(entry)
  attack = None if is_read else attacks.microbatch(_build_attack(entry), microbatch_size)
  evaluate_batch = job.evaluate_read if is_read else batch_program(attack, attack_entries.norm(entry) or "l2", job.mesh)
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
  job: Job, name: str, entry: Mapping[str, Any], clean: Arrays
) -> tuple[Arrays, attacks.AutoAttackReport]:
  """Runs AutoAttack on the split. Returns a result in the form of any other attack's, and AutoAttack's report."""
  start = time.perf_counter()
  split = job.split.in_memory()  # AutoAttack accesses images in any order and keeps its adversarials in memory
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
      **attack_entries.autoattack_arguments(entry),
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
  # If the attacked model is a different one, an image that breaks it need not break the evaluated model.
  same = job.attacked_fn is job.logits_fn
  correct = report.robust if same else evaluated["predictions"] == split.labels
  result = {"correct": correct, "distances": report.distances, "rows": kept, "images": images}
  result["broken_by"] = np.where(correct, -1, np.maximum(report.broken_by, 0))
  result["deceived"] = correct & ~report.robust
  return evaluated | result | {"seconds": np.array([seconds])}, report


def _with_fallen(job: Job, clean: Arrays, report: attacks.AutoAttackReport) -> Arrays:
  """The results of the model on all images as AutoAttack left them; `clean` holds those on the clean images."""
  if not len(report.fallen):
    return clean
  fallen, _ = run_clean(job, job.split.select(report.fallen)._replace(images=report.adversarials), lambda *_: None)
  evaluated = {name: array.copy() for name, array in clean.items()}
  for name, array in fallen.items():
    evaluated[name][report.fallen] = array
  return evaluated
