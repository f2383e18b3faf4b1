"""One attack of AutoAttack: its compiled programs, the batches that they run on, and their results."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from lrat_jax.attacks import _entry, losses, threat_model
from lrat_jax.attacks._entry import example_keys
from lrat_jax.attacks.eval_state import Store
from lrat_jax.attacks.registry import from_config
from lrat_jax.attacks.report import as_floats
from lrat_jax.attacks.stages import Stage, StageSummary
from lrat_jax.convolutions import rewrite
from lrat_jax.core import microbatch
from lrat_jax.core.arguments import check_count, shown
from lrat_jax.core.typing import LogitsFn

# Rounding may put a projected image this far outside its ball, relative and absolute.
_SLACK = 1e-5, 1e-6
# Number of predictions of a random model in the majority vote on an image.
_VOTES = 11
# Images that an accelerator processes at once.
_LARGE_CHUNK = 256
# A CPU core processes fewer: the largest of these numbers for which the outputs of the network's convolutions fit in
# the cache. A network with more than `_LARGEST_KERNELS` numbers in its kernels reads them again for each chunk, and so
# gains nothing from small chunks.
_CPU_CHUNKS = (8, 16, 32)
_CACHED_OUTPUTS = 2**19
_LARGEST_KERNELS = 2**20

# The last images go through the model in chunks that are smaller by these factors, as soon as two such chunks hold all.
_SMALLER = (4, 16)
# Number of programs of later stages that are compiled at the same time, while earlier stages run.
_COMPILERS = 2

_Result = TypeVar("_Result")
_Program = futures.Future[jax.stages.Compiled]
# Positions of the broken images, and their adversarial images.
Found = tuple[np.ndarray, np.ndarray]


class Job(NamedTuple):
  """The inputs and settings of a run."""

  logits_fn: Partial
  key: Array
  images: np.ndarray  # as given
  labels: np.ndarray
  indices: np.ndarray
  epsilon: float
  norm: str
  ladder: tuple[microbatch.Layout, ...]  # from the largest chunks to those for the last few images
  store: Store
  random: bool  # whether the model is random, and called with keys
  on_progress: Callable[[str, int, int], None]

  def rows(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images at some places, in the dtype that attacks compute in, with their labels and indices."""
    images = as_floats(self.images[places])
    return images.astype(_entry.computed_type(images.dtype)), self.labels[places], self.indices[places]

  @property
  def plan(self) -> microbatch.Layout:
    """The layout for many images, with the largest chunks."""
    return self.ladder[0]

  def layout(self, count: int) -> microbatch.Layout:
    """The layout for `count` images. It depends on their number only, so that batches and devices change no result."""
    smaller = [layout for layout in self.ladder[1:] if count <= 2 * layout.chunk_size]
    return smaller[-1] if smaller else self.plan


def _majority(logits_fn: LogitsFn, keys: Array, images: Array, labels: Array) -> Array:
  """bool [batch], whether the majority of a random model's predictions is right."""
  draw = lambda index: jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
  right = lambda index: losses.is_correct(logits_fn(images, draw(index)), labels).astype(jnp.int32)
  return 2 * jax.lax.fori_loop(1, _VOTES, lambda index, total: total + right(index), right(0)) > _VOTES


def _repair(found: Array, images: Array, epsilon: float, norm: str) -> tuple[Array, Array]:
  """The images found, projected if they are outside the ball or the range, and which ones were: bool [batch]."""
  ball = threat_model.get_norm(norm)
  outside = ~threat_model.finite(found) | (jnp.abs(found - 0.5) > 0.5).any(axis=(1, 2, 3))
  outside |= ball.length(found - images) > epsilon * (1 + _SLACK[0]) + _SLACK[1]
  back = threat_model.project(jnp.where(jnp.isfinite(found), found, images), images, epsilon, ball)
  return jnp.where(outside[:, None, None, None], back, found), outside


def _lower_stage(job: Job, stage: Stage, plan: microbatch.Layout) -> jax.stages.Lowered:
  """Lowers the program of one round of a stage on a batch.

  The program returns the images found, which of them had to be repaired, and for which of them the attack got gradients
  that are NaN or infinite.
  """
  attack = from_config({"name": stage.attack, "epsilon": job.epsilon, "norm": job.norm, **stage.arguments})
  epsilon, norm, given = job.epsilon, job.norm, job.images.dtype

  def on_chunk(shared: tuple[Partial, Array, Array], rows: tuple[Array, Array, Array]) -> dict[str, Array]:
    (logits_fn, key, rank), (images, labels, indices) = shared, rows
    target = {"target_rank": rank} if stage.targeted else {}
    result = attack(example_keys(key, indices), logits_fn, images, labels, **target)
    found, outside = _repair(result.images, images, epsilon, norm)
    if given in (jnp.bfloat16, np.float16):
      found = threat_model.rounded(found, images, given).astype(found.dtype)
    broken = jnp.zeros_like(outside) if result.broken_gradients is None else result.broken_gradients > 0
    return {"images": found, "outside": outside, "broken": broken}

  return microbatch.lower(plan, on_chunk, _like_shared(job), job.rows(np.arange(1)))


def _lower_verdict(job: Job, plan: microbatch.Layout) -> jax.stages.Lowered:
  """Lowers the program that evaluates the model on a batch, clean or attacked: its logits, and whether it is right."""
  random = job.random

  def on_chunk(shared: tuple[Partial, Array, Array], rows: tuple[Array, Array, Array]) -> dict[str, Array]:
    (logits_fn, key, _), (images, labels, indices) = shared, rows
    if not random:
      logits = logits_fn(images)
      return {"logits": logits, "right": losses.is_correct(logits, labels)}
    keys = example_keys(key, indices)
    return {"logits": logits_fn(images, keys), "right": _majority(logits_fn, keys, images, labels)}

  return microbatch.lower(plan, on_chunk, _like_shared(job), job.rows(np.arange(1)))


class Programs:
  """The compiled programs of the stages and of the evaluation of their results, for each layout.

  Threads compile them; the calling thread traces them, because JAX's settings apply there.
  """

  def __init__(self, job: Job, pool: futures.Executor):
    self._job, self._pool = job, pool
    self._found: dict[tuple[str, microbatch.Layout], _Program] = {}

  def submit(self, stage: Stage | None, plan: microbatch.Layout) -> _Program:
    """Traces the program of a stage (None: of the evaluation) and submits it for compilation, if not done before."""
    place = repr(stage), plan
    if place not in self._found:
      # Programs for another number of images are rarely needed again: if they were not begun, they are forgotten.
      others = [(other, program) for other, program in self._found.items() if other[1] != plan]
      for other, program in others:
        if program.cancel():
          del self._found[other]
      lowered = _lower_stage(self._job, stage, plan) if stage else _lower_verdict(self._job, plan)
      self._found[place] = self._pool.submit(lowered.compile)
    return self._found[place]

  def submit_all(self, stages: Sequence[Stage], plan: microbatch.Layout) -> None:
    """`submit` for several stages with one layout."""
    for stage in stages:
      self.submit(stage, plan)


@contextlib.contextmanager
def compiling(job: Job) -> Iterator[Programs]:
  """The programs of a run; those that are still queued when it ends are not compiled."""
  pool = futures.ThreadPoolExecutor(_COMPILERS)
  try:
    yield Programs(job, pool)
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def shared(job: Job, number: int, round_: int) -> tuple[Partial, Array, Array]:
  """The arguments that all images of a round share, replicated: model, key, and the rank of the target class.

  Stage 0 is the evaluation of the clean images.
  """
  key = jax.random.fold_in(jax.random.fold_in(job.key, number), round_)
  return microbatch.replicate(job.plan, (job.logits_fn, key, jnp.int32(round_ + 1)))


def _like_shared(job: Job) -> tuple[Partial, Array, Array]:
  """Arguments of the same types as those of `shared`, for tracing, without waiting for a fold_in of the key."""
  return microbatch.replicate(job.plan, (job.logits_fn, job.key, np.int32(1)))


def _shared_by(job: Job, number: int, round_: int, stage: Stage) -> tuple[Any, Any]:
  """`shared` for a round's attack, and for the evaluation after it, whose key differs from those of all rounds."""
  return shared(job, number, round_), shared(job, number, stage.rounds + round_)


def _run_piece(
  job: Job,
  stage: Stage,
  coming: Sequence[Stage],
  programs: Programs,
  plan: microbatch.Layout,
  shared: tuple[Any, Any],
  batch: np.ndarray,
  name: str,
) -> dict[str, Any]:
  """The result of one batch of one round, loaded from the store, or computed and saved there.

  Its seconds include the wait for the programs. `shared` has the shared arguments of the attack and of the evaluation.
  """
  kept = job.store.load(name)
  if kept is not None:
    return kept
  start = time.perf_counter()
  attack, verdict = programs.submit(stage, plan), programs.submit(None, plan)
  images, *of_images = job.rows(batch)
  meanwhile = functools.partial(programs.submit_all, coming, plan)
  result = microbatch.run_batch(plan, attack.result(), shared[0], (images, *of_images), meanwhile)
  right = microbatch.run_batch(plan, verdict.result(), shared[1], (result["images"], *of_images))["right"]
  piece = {
    "fallen": batch[~right],
    "images": result["images"][~right],
    "repaired": np.int64(result["outside"].sum()),
    "doubtful": batch[right & result["broken"]],
    "seconds": np.float64(time.perf_counter() - start),
  }
  job.store.save(name, piece)
  return piece


def run_stage(
  number: int, planned: Sequence[Stage], programs: Programs, robust: np.ndarray, job: Job
) -> tuple[np.ndarray, StageSummary, list[str], list[Found]]:
  """Runs all rounds of stage `number`, the first of `planned`; the programs of the others are compiled meanwhile.

  Returns which images are still robust [n], a summary, warnings, and the adversarial images found.
  """
  stage, *coming = planned
  entered, attacked, seconds, repaired = int(robust.sum()), 0, 0.0, 0
  found: list[Found] = []
  robust, doubtful = robust.copy(), np.zeros(len(robust), bool)
  for round_ in range(stage.rounds):
    shared = _shared_by(job, number, round_, stage)
    standing = np.flatnonzero(robust)
    attacked += len(standing)
    plan = job.layout(len(standing))
    for index, batch in enumerate(microbatch.batches(plan, standing)):
      name = f"{number}-{stage.name}-{round_}-{plan.chunk_size}-{index}"
      piece = _run_piece(job, stage, coming, programs, plan, shared, batch, name)
      robust[piece["fallen"]] = False
      found.append((piece["fallen"], piece["images"]))
      doubtful[piece["doubtful"]] = True
      seconds, repaired = seconds + float(piece["seconds"]), repaired + int(piece["repaired"])
      done = min(attacked - len(standing) + (index + 1) * plan.batch_size, attacked)
      job.on_progress(stage.name, done, attacked + int(robust.sum()) * (stage.rounds - round_ - 1))
  broken = entered - int(robust.sum())
  summary = StageSummary(
    name=stage.name,
    robust_accuracy=float(robust.mean()),
    attacked=entered,
    broken=broken,
    seconds=seconds,
    images_per_second=entered / max(seconds, 1e-9),
    gradient_calls=attacked * stage.gradient_calls(job.norm),
  )
  notes = []
  if repaired:
    notes.append(
      f"{stage.name} left the ball or [0, 1] on {repaired} images, which were projected and evaluated again."
    )
  if count := int((doubtful & robust).sum()):
    where = f"{count} of the {robust.sum()} images that it left"
    notes.append(f"{stage.name} met gradients that are NaN or infinite in places on {where}.")
  return robust, summary, notes, found


def _fastest_chunk(platform: str, logits_fn: LogitsFn, *one_image: Array) -> int:
  """The number of images that a device processes at once, from the model's convolutions, traced on `one_image`."""
  if platform != "cpu":
    return _LARGE_CHUNK
  outputs, kernels = rewrite.sizes(logits_fn, *one_image)
  fitting = [size for size in _CPU_CHUNKS if size * outputs <= _CACHED_OUTPUTS]
  return _CPU_CHUNKS[-1] if kernels > _LARGEST_KERNELS else max(fitting, default=_CPU_CHUNKS[0])


def layouts(
  devices: Any, batch_size: Any, chunk_size: Any, logits_fn: LogitsFn, *one_image: Array
) -> tuple[microbatch.Layout, ...]:
  """The layouts for many images, then for fewer and fewer. Raises ValueError for invalid devices or sizes.

  If `chunk_size` is None, it depends on the model, which is traced on its arguments for one image, `one_image`.
  """
  devices = list(jax.devices()) if devices is None else devices
  if not isinstance(devices, list | tuple) or not devices or not all(isinstance(x, jax.Device) for x in devices):
    raise ValueError(f"devices={shown(devices)} must be a list of devices, as returned by jax.devices(), or None.")
  batch_size = check_count(batch_size, "batch_size", 1)
  if chunk_size is None:
    chunk_size = _fastest_chunk(devices[0].platform, logits_fn, *one_image)
  return _ladder(list(devices), batch_size, min(check_count(chunk_size, "chunk_size", 1), batch_size))


def _ladder(devices: list[jax.Device], batch_size: int, chunk_size: int) -> tuple[microbatch.Layout, ...]:
  smaller = sorted({math.ceil(chunk_size / times) for times in _SMALLER} - {chunk_size}, reverse=True)
  few = [microbatch.layout(devices, 2 * size, size) for size in smaller]
  return microbatch.layout(devices, batch_size, chunk_size), *few


def in_memory(job: Job, action: Callable[[Job], _Result]) -> tuple[Job, _Result]:
  """Runs `action(job)`; each time that a device runs out of memory, starts again with chunks half as large.

  Returns the job with the chunk size that was used, and the action's result.
  """
  while True:
    try:
      return job, action(job)
    except jax.errors.JaxRuntimeError as error:
      job = _halved(job, error)


def _halved(job: Job, error: jax.errors.JaxRuntimeError) -> Job:
  size = job.plan.chunk_size
  try:
    half = microbatch.halved(size, job.plan.mesh, error)
  except MemoryError as small:
    raise MemoryError(f"chunk_size={size}: {small}") from error
  return job._replace(ladder=_ladder(list(job.plan.mesh.devices.flat), job.plan.batch_size, half))
