"""AutoAttack: several strong attacks in sequence, each on the images that are still robust."""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lrat_jax.attacks import _checks, _entry, _stage_runner, threat_model
from lrat_jax.attacks._entry import example_keys
from lrat_jax.attacks._stage_runner import Found, Job
from lrat_jax.attacks.eval_state import NullStore, Store
from lrat_jax.attacks.report import AutoAttackReport, as_floats
from lrat_jax.attacks.stages import VERSIONS, Stage, StageSummary, stages
from lrat_jax.core import microbatch
from lrat_jax.core.arguments import as_number, check_choice, shown
from lrat_jax.core.typing import HostIntegers, HostPixels, LogitsFn, OneKey

CLEAN = "clean"
ROBUST = -1


def _clean(programs: _stage_runner.Programs, job: Job) -> tuple[np.ndarray, int, str]:
  """Returns which clean images the model gets right, bool [n], the number of classes used, and a digest of the logits.

  Raises ValueError, with an image's index, if the model does not return valid logits for the labels.
  """
  program, shared = programs.submit(None, job.plan).result(), _stage_runner.shared(job, 0, 0)
  right, used, digest = [], False, hashlib.sha256()
  for batch in microbatch.batches(job.plan, np.arange(len(job.images))):
    found = microbatch.run_batch(job.plan, program, shared, job.rows(batch))
    _checks.check_logits(found["logits"], job.labels[batch], first=batch[0])
    right.append(found["right"])
    used |= np.isfinite(found["logits"]).any(axis=0)
    digest.update(found["logits"].tobytes())
  return np.concatenate(right), int(np.sum(used)), digest.hexdigest()


def _fingerprint(job: Job, planned: Sequence[Stage], predictions: str) -> dict[str, str]:
  """Everything that the result depends on, by the name that a store's error message gives if it has changed."""
  data = hashlib.sha256()
  for array in (job.images, job.labels, job.indices):
    data.update(np.ascontiguousarray(array).view(np.uint8).data)
  attacks = [[stage.name, stage.attack, sorted(stage.arguments.items()), stage.rounds] for stage in planned]
  return {
    "images, labels or example indices": data.hexdigest(),
    "predictions of the model": predictions,
    "threat": f"{job.norm} {job.epsilon!r}",
    "attacks": str(attacks),
    "key": str(np.asarray(jax.random.key_data(job.key)).tolist()),
    # A stored piece is a batch, and the batch size decides which images are in it.
    "batch size": f"{job.plan.batch_size} in chunks of {[layout.chunk_size for layout in job.ladder]}",
    "version of jax": jax.__version__,
  }


def _distances(job: Job, fallen: np.ndarray, adversarials: np.ndarray) -> np.ndarray:
  """float [n], the distance of each adversarial to its clean image in the norm; 0 if an image has none."""
  length = threat_model.get_norm(job.norm).length
  distances = np.zeros(len(job.images), adversarials.dtype)
  for first in range(0, len(fallen), 1024):
    part = slice(first, first + 1024)
    distances[fallen[part]] = length(adversarials[part] - job.rows(fallen[part])[0])
  return distances


def _check_options(version: Any, store: Any, on_stage: Any, on_progress: Any) -> None:
  check_choice(version, "version", VERSIONS)
  if store is not None and not isinstance(store, Store):
    raise ValueError(f"store={shown(store)} is not a store; pass a FileStore, or None.")
  if not callable(on_stage):
    raise ValueError(f"on_stage={shown(on_stage)} must be a function of a stage's summary.")
  if not callable(on_progress):
    raise ValueError(f"on_progress={shown(on_progress)} must be a function of a stage's name and two numbers.")


def autoattack(
  key: OneKey,
  logits_fn: LogitsFn,
  images: HostPixels,
  labels: HostIntegers,
  *,
  epsilon: float,
  norm: str = "linf",
  version: str = "standard",
  batch_size: int = 256,
  chunk_size: int | None = None,
  devices: Sequence[jax.Device] | None = None,
  example_indices: HostIntegers | None = None,
  attacks_to_run: Sequence[str] | None = None,
  overrides: Mapping[str, Mapping[str, Any]] | None = None,
  on_stage: Callable[[StageSummary], None] = lambda summary: None,
  on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
  store: Store | None = None,
) -> AutoAttackReport:
  """AutoAttack (Croce & Hein, arXiv:2003.01690), with the original's attacks, counts and order.

  "standard": APGD-CE, targeted APGD, targeted FAB, Square. "plus": also restarts, APGD-DLR and untargeted FAB. "rand":
  for random models, APGD-CE and APGD-DLR with gradients averaged over 20 draws. "apgd": only the first two attacks of
  "standard", which give an upper bound. Later attacks, and later targets of the same attack, run only on the images
  that are still robust. An attack succeeds if the model is wrong on the image that it returns, after a check that this
  image is in the ball and in [0, 1].

  Differences from the original: each image has its own key, so results depend neither on batch size nor on devices; an
  attack ends at an image's first adversarial; an image outside the ball is projected and evaluated again; 2 and 3
  classes are supported; "rand" takes the majority of several predictions on clean and attacked images, not one
  prediction. Runs on the host, in a single process, not under jit. Only one batch at a time is on the devices;
  everything else is in host memory.

  Args:
    key: a typed key; each image's key is derived from it and from the stage, the round and `example_indices`.
    logits_fn: images -> logits [batch, classes] ("rand": (images, keys [batch]) -> logits). Pass parameters with
      `jax.tree_util.Partial(apply, variables)`; otherwise they are compiled in as constants.
    images: uint8, or float in [0, 1], [n, h, w, c], in host memory; not modified.
    labels: int [n].
    epsilon: radius of the ball.
    norm: "linf", "l2" or "l1", in upper or lower case.
    version: "standard", "plus", "rand" or "apgd".
    batch_size: images on all devices together, rounded up to whole chunks. Results are bit-identical for all batch
      sizes, unless the batch size is smaller than chunk_size, which it then limits.
    chunk_size: images that go through the model at once on one device, which determines the memory used; by default
      256, and on CPU 8 to 32, so that the outputs of the convolutions fit in a core's cache. Rounds with few images
      use smaller chunks: a quarter of this size for at most half a chunk of images, a sixteenth for at most an eighth.
      If an accelerator runs out of memory, chunks are halved, with a warning. With another size, results differ only by
      rounding.
    devices: by default all. Results are bit-identical for any number of devices. If the only device is a CPU, one
      thread per core shares it.
    example_indices: int [n], the images' indices in their data set; by default 0 to n - 1.
    attacks_to_run: names of the version's stages to run; by default all.
    overrides: stage name -> arguments that replace the version's, such as {"square": {"num_queries": 100}}.
    on_stage: called with each stage's summary when it ends.
    on_progress: called after each batch with the stage's name, the number of images attacked so far over its rounds,
      and the total that will be attacked if no more images are broken.
    store: saves finished work, so that the same call resumes after an interruption; see `FileStore`.

  Raises:
    ValueError: an argument outside the values listed here, or a store of other work; the message gives the reason.
    MemoryError: a device has no memory for `chunk_size` images, and chunks cannot be halved; the message names the
      device.
  """
  logits_fn = _entry.as_function(logits_fn)
  _checks.check_one_key(key)
  _check_options(version, store, on_stage, on_progress)
  key = _entry.as_threefry(key)
  images, labels, indices = _checks.host_data(images, labels, example_indices)
  norm, epsilon = threat_model.norm_name(norm), as_number(epsilon, "epsilon")
  threat_model.check_epsilon(epsilon, norm, images.shape[1:])
  given = np.dtype(np.float32) if images.dtype == np.uint8 else images.dtype
  logits_fn = Partial(
    functools.partial(_entry.ask, given, _entry.computed_type(given)),
    logits_fn if isinstance(logits_fn, Partial) else Partial(logits_fn),
  )
  one_image = [jnp.asarray(as_floats(images[:1]), _entry.computed_type(given))]
  one_image += [example_keys(key, jnp.asarray(indices[:1]))] if version == "rand" else []
  ladder = _stage_runner.layouts(devices, batch_size, chunk_size, logits_fn, *one_image)
  job = Job(
    microbatch.replicate(ladder[0], logits_fn), key, images, labels, indices, epsilon, norm,
    ladder, NullStore() if store is None else store, version == "rand", on_progress,
  )  # fmt: skip
  report = _evaluate(job, version, attacks_to_run, {} if overrides is None else overrides, on_stage)
  return report._replace(adversarials=report.adversarials.astype(given))


def _evaluate(
  job: Job,
  version: str,
  attacks_to_run: Sequence[str] | None,
  overrides: Mapping[str, Mapping[str, Any]],
  on_stage: Callable[[StageSummary], None],
) -> AutoAttackReport:
  """Evaluates the clean images and runs all stages, in chunks as large as memory allows."""
  num_classes = _num_classes(job)
  planned, notes = stages(version, job.norm, num_classes, attacks_to_run, overrides)
  _checks.check_classes(job.labels, num_classes)
  with _stage_runner.compiling(job) as programs:
    programs.submit_all(planned[:1], job.layout(len(job.images)))  # compiled while the clean images are evaluated
    smaller, (robust, used, predictions) = _stage_runner.in_memory(job, functools.partial(_clean, programs))
    if used < num_classes:
      planned, notes = stages(version, job.norm, used, attacks_to_run, overrides)
      notes.append(f"{num_classes - used} of {num_classes} logits are -inf on all images, and no classes to attack.")
    job.store.open(_fingerprint(job, planned, predictions))
    smaller, report = _run(smaller, planned, robust, programs, on_stage)
  before, after = job.plan.chunk_size, smaller.plan.chunk_size
  if after < before:
    notes.append(f"chunks of {before} images were too large for a device's memory; at the end they were of {after}.")
  return report._replace(warnings=(*notes, *report.warnings))


def _num_classes(job: Job) -> int:
  one = job.rows(np.arange(1))[0]
  keys = (jax.eval_shape(functools.partial(jax.random.split, num=1), job.key),) if job.random else ()
  return jax.eval_shape(job.logits_fn, one, *keys).shape[-1]


def _joined(job: Job, found: list[Found]) -> Found:
  """All adversarials found, in the order of the images."""
  nothing = job.rows(np.arange(0))[0]
  fallen = np.concatenate([np.zeros(0, np.int64), *(places for places, _ in found)])
  order = np.argsort(fallen)
  return fallen[order], np.concatenate([nothing, *(images for _, images in found)])[order]


def _run(
  job: Job, planned: list[Stage], robust: np.ndarray, programs: _stage_runner.Programs, on_stage
) -> tuple[Job, AutoAttackReport]:
  """Runs the stages in order on the images that the model gets right. Returns the job with its last chunk size, too."""
  clean_accuracy, summaries = float(robust.mean()), []
  found: list[Found] = []
  notes: list[str] = []
  broken_by = np.where(robust, ROBUST, 0)
  for number, stage in enumerate(planned, start=1):
    if not robust.any():
      break
    with jax.profiler.TraceAnnotation(stage.name):
      attack = functools.partial(_stage_runner.run_stage, number, planned[number - 1 :], programs, robust)
      job, (left, summary, lines, adversarials) = _stage_runner.in_memory(job, attack)
    broken_by[robust & ~left] = number
    robust = left
    summaries.append(summary)
    notes += lines
    found += adversarials
    on_stage(summary)
  fallen, images = _joined(job, found)
  return job, AutoAttackReport(
    robust=robust,
    robust_accuracy=float(robust.mean()),
    clean_accuracy=clean_accuracy,
    broken_by=broken_by,
    stages=(CLEAN, *(stage.name for stage in planned)),
    distances=_distances(job, fallen, images),
    per_attack=tuple(summaries),
    warnings=tuple(notes),
    clean_images=job.images,
    fallen=fallen,
    adversarials=images,
  )
