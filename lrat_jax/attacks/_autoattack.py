"""AutoAttack: several strong attacks in a row, each on the images that the ones before it left standing."""

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from lrat_jax.attacks import _entry, losses, threat_model
from lrat_jax.attacks._entry import example_keys
from lrat_jax.attacks.eval_state import NullStore, Store
from lrat_jax.attacks.registry import from_config
from lrat_jax.attacks.report import AutoAttackReport, as_floats
from lrat_jax.attacks.stages import VERSIONS, Stage, StageSummary, stages
from lrat_jax.core import microbatch
from lrat_jax.core.arguments import as_number, check_choice, check_count, shown
from lrat_jax.core.typing import HostIntegers, HostPixels, LogitsFn, OneKey

# Floating point may carry a projected image this far outside its ball, relative and absolute.
_SLACK = 1e-5, 1e-6
# How many predictions of a random model are counted for its verdict on an image.
_VOTES = 11
# Images that a device works on at once: what is fastest on a CPU core, and what fills an accelerator.
_CHUNK_SIZES = {"cpu": 32}
_LARGE_CHUNK = 256

# Programs of coming stages that are compiled at once, while earlier stages run.
_COMPILERS = 2

_Program = futures.Future[jax.stages.Compiled]
# Places of images that fell, and what broke them.
_Found = tuple[np.ndarray, np.ndarray]

CLEAN = "clean"
ROBUST = -1


class _Job(NamedTuple):
  """What stays the same through a run."""

  logits_fn: Partial
  key: Array
  images: np.ndarray  # as they were given
  labels: np.ndarray
  indices: np.ndarray
  epsilon: float
  norm: str
  plan: microbatch.Layout
  store: Store
  random: bool  # whether the model is a random one, called with keys

  def rows(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some images, in the type that attacks work in, with their labels and indices."""
    images = as_floats(self.images[places])
    return images.astype(_entry.computed_type(images.dtype)), self.labels[places], self.indices[places]


def _verdict(logits_fn: LogitsFn, keys: Array, images: Array, labels: Array, random: bool) -> Array:
  """bool [batch], whether the model is right; a random one by the majority of its predictions."""
  if not random:
    return losses.is_correct(logits_fn(images), labels)
  draw = lambda index: jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
  right = lambda index: losses.is_correct(logits_fn(images, draw(index)), labels).astype(jnp.int32)
  return 2 * jax.lax.fori_loop(1, _VOTES, lambda index, total: total + right(index), right(0)) > _VOTES


def _repair(found: Array, images: Array, epsilon: float, norm: str) -> tuple[Array, Array]:
  """The images found, brought back where they are outside the ball or the range, and which were: bool [batch]."""
  ball = threat_model.get_norm(norm)
  outside = ~threat_model.finite(found) | (jnp.abs(found - 0.5) > 0.5).any(axis=(1, 2, 3))
  outside |= ball.length(found - images) > epsilon * (1 + _SLACK[0]) + _SLACK[1]
  back = threat_model.project(jnp.where(jnp.isfinite(found), found, images), images, epsilon, ball)
  return jnp.where(outside[:, None, None, None], back, found), outside


def _lower_stage(job: _Job, stage: Stage) -> jax.stages.Lowered:
  """One round of a stage on a batch.

  Its program returns the images found, whether the model is right on them, which had to be repaired, and which survived
  an attack some of whose gradients were no numbers.
  """
  attack = from_config({"name": stage.attack, "epsilon": job.epsilon, "norm": job.norm, **stage.arguments})
  epsilon, norm, random = job.epsilon, job.norm, job.random

  def on_chunk(shared: tuple[Partial, Array, Array], rows: tuple[Array, Array, Array]) -> dict[str, Array]:
    (logits_fn, key, rank), (images, labels, indices) = shared, rows
    keys = example_keys(key, indices)
    target = {"target_rank": rank} if stage.targeted else {}
    result = attack(keys, logits_fn, images, labels, **target)
    found, outside = _repair(result.images, images, epsilon, norm)
    vote_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    right = _verdict(logits_fn, vote_keys, found, labels, random)
    broken = jnp.zeros_like(outside) if result.broken_gradients is None else result.broken_gradients > 0
    return {"images": found, "right": right, "outside": outside, "doubtful": right & broken}

  return microbatch.lower(job.plan, on_chunk, _shared(job, 0, 0), job.rows(np.arange(1)))


@contextlib.contextmanager
def _compiling(job: _Job, planned: Sequence[Stage]) -> Iterator[list[tuple[Stage, _Program]]]:
  """The stages with their programs, which are compiled while the stages before them run."""
  pool = futures.ThreadPoolExecutor(_COMPILERS)
  try:
    # Traced here, in the thread in which the caller's settings of JAX hold.
    yield [(stage, pool.submit(_lower_stage(job, stage).compile)) for stage in planned]
  finally:
    pool.shutdown(wait=False, cancel_futures=True)  # of stages that no image came to


def _shared(job: _Job, number: int, round_: int) -> tuple[Partial, Array, Array]:
  """What all images of a stage's round share, on every device: model, key, and the rank of the class to attack."""
  key = jax.random.fold_in(jax.random.fold_in(job.key, number), round_)
  return microbatch.replicate(job.plan, (job.logits_fn, key, jnp.int32(round_ + 1)))


def _run_piece(job: _Job, program: _Program, shared: Any, batch: np.ndarray, name: str) -> dict[str, Any]:
  """One batch of one round, from the store or run and kept there; its seconds count a wait for the program."""
  kept = job.store.load(name)
  if kept is not None:
    return kept
  start = time.perf_counter()
  result = microbatch.run_batch(job.plan, program.result(), shared, job.rows(batch))
  piece = {
    "fallen": batch[~result["right"]],
    "images": result["images"][~result["right"]],
    "repaired": np.int64(result["outside"].sum()),
    "doubtful": batch[result["doubtful"]],
    "seconds": np.float64(time.perf_counter() - start),
  }
  job.store.save(name, piece)
  return piece


def _run_stage(
  job: _Job, number: int, stage: Stage, program: _Program, robust: np.ndarray, found: list[_Found]
) -> tuple[np.ndarray, StageSummary, list[str]]:
  """All rounds of a stage. Returns the images still robust [n], a summary, and what to say of it.

  Adds the adversarials to `found`, of which there is one for the whole run.
  """
  entered, attacked, seconds, repaired = int(robust.sum()), 0, 0.0, 0
  robust, doubtful = robust.copy(), np.zeros(len(robust), bool)
  for round_ in range(stage.rounds):
    shared = _shared(job, number, round_)
    standing = np.flatnonzero(robust)
    attacked += len(standing)
    for index, batch in enumerate(microbatch.batches(job.plan, standing)):
      piece = _run_piece(job, program, shared, batch, f"{number}-{stage.name}-{round_}-{index}")
      robust[piece["fallen"]] = False
      found.append((piece["fallen"], piece["images"]))
      doubtful[piece["doubtful"]] = True
      seconds, repaired = seconds + float(piece["seconds"]), repaired + int(piece["repaired"])
  broken = entered - int(robust.sum())
  summary = StageSummary(
    name=stage.name,
    robust_accuracy=float(robust.mean()),
    attacked=entered,
    broken=broken,
    seconds=seconds,
    images_per_second=entered / max(seconds, 1e-9),
    gradient_calls=attacked * stage.gradient_calls(),
  )
  notes = []
  if repaired:
    notes.append(
      f"{stage.name} left the ball or [0, 1] on {repaired} images, which were projected and evaluated again."
    )
  if count := int((doubtful & robust).sum()):
    where = f"{count} of the {robust.sum()} images that it left"
    notes.append(f"{stage.name} met gradients that are NaN or infinite in places on {where}.")
  return robust, summary, notes


def _clean(job: _Job) -> tuple[np.ndarray, int, str]:
  """Which clean images the model gets right, bool [n], how many classes it uses, and a digest of its predictions.

  Raises ValueError, with an image's number, if it returns no logits of the labels.
  """
  random = job.random

  def on_chunk(shared: tuple[Partial, Array], rows: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    (logits_fn, key), (images, labels, indices) = shared, rows
    keys = example_keys(key, indices)
    logits = logits_fn(images, keys) if random else logits_fn(images)
    return _verdict(logits_fn, keys, images, labels, random), logits

  shared = microbatch.replicate(job.plan, (job.logits_fn, jax.random.fold_in(job.key, 0)))
  compiled = microbatch.lower(job.plan, on_chunk, shared, job.rows(np.arange(1))).compile()
  right, used, digest = [], False, hashlib.sha256()
  for batch in microbatch.batches(job.plan, np.arange(len(job.images))):
    predictions, logits = microbatch.run_batch(job.plan, compiled, shared, job.rows(batch))
    _entry.check_logits(logits, job.labels[batch], first=batch[0])
    right.append(predictions)
    used |= np.isfinite(logits).any(axis=0)
    digest.update(logits.tobytes())
  return np.concatenate(right), int(np.sum(used)), digest.hexdigest()


def _fingerprint(job: _Job, planned: Sequence[Stage], predictions: str) -> dict[str, str]:
  """What the result depends on, by the name under which a store tells that it has changed."""
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
    # A piece is a batch, and its size decides which images are in it.
    "batch size": f"{job.plan.batch_size} in chunks of {job.plan.chunk_size}",
    "version of jax": jax.__version__,
  }


def _distances(job: _Job, fallen: np.ndarray, adversarials: np.ndarray) -> np.ndarray:
  """float [n], how far from its image each adversarial is, in the norm; 0 where there is none."""
  length = threat_model.get_norm(job.norm).length
  distances = np.zeros(len(job.images), adversarials.dtype)
  for first in range(0, len(fallen), 1024):
    part = slice(first, first + 1024)
    distances[fallen[part]] = length(adversarials[part] - job.rows(fallen[part])[0])
  return distances


def _layout(devices: Any, batch_size: Any, chunk_size: Any) -> microbatch.Layout:
  devices = list(jax.devices()) if devices is None else devices
  if not isinstance(devices, list | tuple) or not devices or not all(isinstance(x, jax.Device) for x in devices):
    raise ValueError(f"devices={shown(devices)} must be a list of devices, as jax.devices() gives, or None.")
  if chunk_size is None:
    chunk_size = _CHUNK_SIZES.get(devices[0].platform, _LARGE_CHUNK)
  batch_size, chunk_size = check_count(batch_size, "batch_size", 1), check_count(chunk_size, "chunk_size", 1)
  return microbatch.layout(list(devices), batch_size, min(chunk_size, batch_size))


def _check_options(version: Any, store: Any, on_stage: Any) -> None:
  check_choice(version, "version", VERSIONS)
  if store is not None and not isinstance(store, Store):
    raise ValueError(f"store={shown(store)} keeps nothing; give a FileStore, or None.")
  if not callable(on_stage):
    raise ValueError(f"on_stage={shown(on_stage)} must be a function of a stage's summary.")


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
  store: Store | None = None,
) -> AutoAttackReport:
  """AutoAttack (Croce & Hein, arXiv:2003.01690), with the original's attacks, counts and order.

  "standard": APGD on cross-entropy, APGD towards targets, FAB towards targets, Square. "plus": restarts and untargeted
  FAB as well. "rand": for random models, gradients averaged over 20 draws. "apgd": the first two of "standard", an
  upper bound. An image that falls is out of all that follows, the next target included. An attack succeeds if the model
  is wrong on the image that it returns, after that was checked to lie in the ball and in [0, 1].

  Against the original: each image has a key of its own, so results depend neither on batch size nor on devices; an
  attack ends at an image's first adversarial; an image outside the ball is projected and evaluated again; 2 and 3
  classes work; "rand" takes the majority of several predictions on clean and attacked images, the original one.
  Runs on the host, in a single process, not under jit. One batch is on the devices at a time, all else in host memory.

  Args:
    key: a typed key; an image's own is folded from it by stage, round and `example_indices`.
    logits_fn: images -> logits [batch, classes] ("rand": (images, keys [batch]) -> logits). Wrap parameters as
      `jax.tree_util.Partial(apply, variables)`, or they are compiled in as constants.
    images: uint8, or float in [0, 1], [n, h, w, c], on the host, where they stay as they are.
    labels: int [n].
    epsilon: radius of the ball.
    norm: "linf", "l2" or "l1", in upper or lower case.
    version: "standard", "plus", "rand" or "apgd".
    batch_size: images on all devices together, rounded up to whole chunks. Changes no result, to the last bit, unless
      it is smaller than a chunk, which it bounds.
    chunk_size: images that go through the model at once on one device, what memory is for; 32 on CPU, 256 elsewhere;
      fewer are faster where they keep to a core's cache. Results at other sizes differ as far as sums in floating
      point do.
    devices: all by default. Their number changes no result, to the last bit. A CPU that is one device is shared by a
      thread for each core.
    example_indices: int [n], which images these are; by default their places.
    attacks_to_run: names of the version's stages to run; all by default.
    overrides: stage name -> arguments other than the version's, such as {"square": {"num_queries": 100}}.
    on_stage: told each stage's summary as it ends.
    store: keeps finished work, so that the same call goes on where it was stopped; see `FileStore`.

  Raises:
    ValueError: an argument outside what is listed here, or a store of other work; the message gives the reason.
  """
  logits_fn = _entry.as_function(logits_fn)
  _entry.check_one_key(key)
  _check_options(version, store, on_stage)
  images, labels, indices = _entry.host_data(images, labels, example_indices)
  norm, epsilon = threat_model.norm_name(norm), as_number(epsilon, "epsilon")
  threat_model.check_epsilon(epsilon, norm, images.shape[1:])
  given = np.dtype(np.float32) if images.dtype == np.uint8 else images.dtype
  logits_fn = Partial(
    functools.partial(_entry.ask, given, _entry.computed_type(given)),
    logits_fn if isinstance(logits_fn, Partial) else Partial(logits_fn),
  )
  job = _Job(
    logits_fn, key, images, labels, indices, epsilon, norm,
    _layout(devices, batch_size, chunk_size), NullStore() if store is None else store, version == "rand",
  )  # fmt: skip
  planned, notes, robust, predictions = _begin(job, version, attacks_to_run, {} if overrides is None else overrides)
  job.store.open(_fingerprint(job, planned, predictions))
  report = _run(job, planned, notes, robust, on_stage)
  return report._replace(adversarials=report.adversarials.astype(given))


def _begin(
  job: _Job, version: str, attacks_to_run: Sequence[str] | None, overrides: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Stage], list[str], np.ndarray, str]:
  """The stages and what to say of them, which clean images are right, bool [n], and a digest of the predictions."""
  num_classes = _num_classes(job)
  planned, notes = stages(version, job.norm, num_classes, attacks_to_run, overrides)
  _entry.check_classes(job.labels, num_classes)
  robust, used, predictions = _clean(job)
  if used < num_classes:
    planned, notes = stages(version, job.norm, used, attacks_to_run, overrides)
    notes.append(f"{num_classes - used} of {num_classes} logits are -inf on all images, and no classes to attack.")
  return planned, notes, robust, predictions


def _num_classes(job: _Job) -> int:
  one = job.rows(np.arange(1))[0]
  keys = (jax.eval_shape(functools.partial(jax.random.split, num=1), job.key),) if job.random else ()
  return jax.eval_shape(job.logits_fn, one, *keys).shape[-1]


def _joined(job: _Job, found: list[_Found]) -> _Found:
  """All that was found, in the order of the images."""
  nothing = job.rows(np.arange(0))[0]
  fallen = np.concatenate([np.zeros(0, np.int64), *(places for places, _ in found)])
  order = np.argsort(fallen)
  return fallen[order], np.concatenate([nothing, *(images for _, images in found)])[order]


def _run(job: _Job, planned: list[Stage], notes: list[str], robust: np.ndarray, on_stage) -> AutoAttackReport:
  """The stages in order, from the images that the model gets right."""
  clean_accuracy, summaries = float(robust.mean()), []
  found: list[_Found] = []
  broken_by = np.where(robust, ROBUST, 0)
  with _compiling(job, planned if robust.any() else []) as programs:
    for number, (stage, program) in enumerate(programs, start=1):
      if not robust.any():
        break
      with jax.profiler.TraceAnnotation(stage.name):
        left, summary, lines = _run_stage(job, number, stage, program, robust, found)
      broken_by[robust & ~left] = number
      robust = left
      summaries.append(summary)
      notes += lines
      on_stage(summary)
  fallen, adversarials = _joined(job, found)
  return AutoAttackReport(
    robust=robust,
    robust_accuracy=float(robust.mean()),
    clean_accuracy=clean_accuracy,
    broken_by=broken_by,
    stages=(CLEAN, *(stage.name for stage in planned)),
    distances=_distances(job, fallen, adversarials),
    per_attack=tuple(summaries),
    warnings=tuple(notes),
    clean_images=job.images,
    fallen=fallen,
    adversarials=adversarials,
  )
