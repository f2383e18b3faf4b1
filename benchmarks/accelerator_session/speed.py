"""How fast: train steps of full networks, compared with PyTorch's on the same device and with the device's peak."""

import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common, step_speed
from benchmarks.accelerator_session import flops, kernels, torch_step
from benchmarks.accelerator_session.session import NUM_CLASSES, Session, Setting
from lrat_jax import attacks, data
from lrat_jax.attacks import losses
from lrat_jax.config import default as config_lib
from lrat_jax.core import sharding
from lrat_jax.training import experiment as experiment_lib
from lrat_jax.training import phases
from lrat_jax.training import step as step_lib

METHODS = ("at", "lrat")
TABLE = "Train steps"
_IMAGE = (32, 32, 3)


class _Ours:
  """The compiled train step of one method, fed from images on the device."""

  def __init__(self, session: Session, setting: Setting, method: str):
    config = config_lib.default(method, "cifar10")
    fields = {"model.name": setting.network, "data.batch_size": setting.batch_size, "data.placement": "device"}
    fields |= {"train_attacks.pgd.num_steps": session.scale.num_steps, "optimizer.schedule": "constant"}
    fields |= {"optimizer.learning_rate": 0.01, "local_weights.begin_fraction": 0.0}
    fields |= {"local_weights.kind": "lrat"} if method == "lrat" else {}
    config.update_from_flattened_dict(fields)
    count = 4 * setting.batch_size
    images = np.random.default_rng(0).integers(0, 256, (count, *_IMAGE), np.uint8)
    split = data.Split(images, (np.arange(count) % NUM_CLASSES).astype(np.int32), np.arange(count, dtype=np.int32))
    mesh = sharding.make_mesh(1)
    self.experiment = experiment_lib.build(config, data.Dataset(split, split, split, NUM_CLASSES), mesh)
    self.batches = data.train_batches(split, setting.batch_size, 0, data.make_device_put(split, mesh, "device"))
    self._start = jax.device_get(self.experiment.initial_state())
    self._state = self._fresh()
    phase = phases.phase_at(config, 0)
    step = step_lib.make_train_step(
      config, self.experiment.model, self.experiment.optimizer, self.experiment.total_steps, mesh, phase
    )
    start = time.perf_counter()
    compiled = step.func.lower(*step.args, self._state, next(self.batches)).compile()
    self.compile_seconds = time.perf_counter() - start
    self._step = functools.partial(compiled, *step.args)
    memory = compiled.memory_analysis()
    self.memory_gib = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30

  def _fresh(self) -> step_lib.TrainState:
    return sharding.replicate(self.experiment.mesh, self._start)

  @property
  def variables(self):
    return self._state.variables

  def take(self, steps: int) -> step_lib.TrainState:
    for _ in range(steps):
      self._state, _ = self._step(self._state, next(self.batches))
    return self._state

  def time(self, steps: int) -> float:
    """Seconds per step, averaged over `steps`."""
    start = time.perf_counter()
    jax.block_until_ready(self.take(steps))
    return (time.perf_counter() - start) / steps

  def repeats(self) -> bool:
    """Whether three steps from the same state on the same batches give the same state, to the bit."""
    batches, found = [next(self.batches) for _ in range(3)], []
    for _ in range(2):
      state = self._fresh()
      for batch in batches:
        state, _ = self._step(state, batch)
      found.append(jax.tree.leaves(jax.device_get(state)))
    return all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


class _Torch:
  """The PyTorch side, in its own process, which keeps running."""

  def __init__(self, setting: Setting, num_steps: int, compiled: bool):
    context = multiprocessing.get_context("spawn")
    self._pipe, there = context.Pipe()
    arguments = (there, setting, num_steps, compiled)
    self._process = context.Process(target=torch_step.serve, args=arguments, daemon=True)
    self._process.start()
    there.close()
    self.memory_gib = 0.0

  def time(self, method: str, steps: int) -> float:
    """Seconds per step. Raises RuntimeError with PyTorch's message."""
    self._pipe.send((method, steps))
    answer = self._pipe.recv()
    if isinstance(answer, str):
      raise RuntimeError(answer)
    seconds, self.memory_gib = answer
    return seconds

  def close(self) -> None:
    self._process.kill()
    self._process.join()


def _peak(session: Session) -> float:
  """Operations per second of one large bfloat16 matrix product."""
  size = session.scale.product_size
  keys = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
  product = jax.jit(jnp.matmul)
  jax.block_until_ready([product(a, b) for _ in range(3)])
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready([product(a, b) for _ in range(10)])
    seconds.append((time.perf_counter() - start) / 10)
  peak = 2 * size**3 / statistics.median(seconds)
  session.record("Does it run", what=f"bfloat16 product of {size} x {size}", result=f"{peak / 1e12:.3g} TFLOP/s")
  return peak


def _step_flops(forward: int, method: str, num_steps: int) -> float:
  """Operations for an image: forward and input gradient per attack step, forward and both gradients per loss term."""
  return forward * (2 * num_steps + (6 if method == "lrat" else 3 + 1 / 8))


def _in_turn(session: Session, sides: dict[str, Callable[[int], float]]) -> dict[str, float]:
  """Median seconds per step of each side, in turn; the first call sets the number of steps in a round."""
  scale = session.scale
  steps = {name: max(1, round(scale.round_seconds / time_steps(2))) for name, time_steps in sides.items()}
  rounds = [{name: time_steps(steps[name]) for name, time_steps in sides.items()} for _ in range(scale.rounds)]
  return {name: statistics.median(found[name] for found in rounds) for name in sides}


def _record(session: Session, setting: Setting, method: str, side: str, seconds: float, flops_: float, peak, **more):
  rate = flops_ * setting.batch_size / seconds
  session.record(
    TABLE,
    network=setting.network,
    batch=setting.batch_size,
    method=method,
    side=side,
    **{"ms a step": 1e3 * seconds, "images/s": setting.batch_size / seconds},
    **{"TFLOP/s": rate / 1e12, "of the peak %": 100 * rate / peak},
    **more,
  )


def _compare(session: Session, setting: Setting, ours: dict[str, _Ours], compiled: bool, forward: int, peak) -> None:
  """Times our steps and PyTorch's alternately, for both methods."""
  name = "PyTorch, compiled" if compiled else "PyTorch, eager"
  torch_side = _Torch(setting, session.scale.num_steps, compiled)
  try:
    start = time.perf_counter()
    for method in METHODS:
      torch_side.time(method, 1)  # compiles and tunes on first use
    warm_up = time.perf_counter() - start
    for method in METHODS:
      sides = {"lrat_jax": ours[method].time, name: functools.partial(torch_side.time, method)}
      seconds = _in_turn(session, sides)
      work = _step_flops(forward, method, session.scale.num_steps)
      about = {"compile s": ours[method].compile_seconds, "memory GiB": ours[method].memory_gib}
      _record(session, setting, method, "lrat_jax", seconds["lrat_jax"], work, peak, **about)
      ratio = seconds[name] / seconds["lrat_jax"]
      about = {"compile s": warm_up, "memory GiB": torch_side.memory_gib, "ours is times as fast": ratio}
      _record(session, setting, method, name, seconds[name], work, peak, **about)
  finally:
    torch_side.close()


def _loop_overhead(session: Session, setting: Setting, ours: _Ours) -> None:
  """The time of the attack's loop relative to that of as many bare input gradients, each jitted."""
  model, mesh, num_steps = (ours.experiment.model, ours.experiment.mesh, session.scale.num_steps)
  batch = next(ours.batches)
  images, labels = data.to_float(batch["images"]), batch["labels"]
  keys = jax.device_put(jax.random.split(jax.random.key(0), len(labels)), images.sharding)
  lengths = {"epsilon": step_speed.EPSILON, "step_size": step_speed.STEP_SIZE}
  pgd = functools.partial(attacks.pgd, **lengths, num_steps=num_steps)

  def gradient(variables, x, y):
    return jax.grad(lambda x: jnp.sum(losses.cross_entropy(model.apply(variables, x), y)))(x)

  loop = common.over_devices(lambda v, k, x, y: pgd(k, functools.partial(model.apply, v), x, y).images, mesh, 3)
  bare = common.over_devices(gradient, mesh, 2)
  sides = {
    "loop": lambda: loop(ours.variables, keys, images, labels),
    "bare": lambda: [bare(ours.variables, images, labels) for _ in range(num_steps)],
  }
  seconds = common.alternate(sides, session.scale.rounds)
  rate = setting.batch_size * num_steps / seconds["loop"]
  session.record(
    "The attack's loop",
    network=setting.network,
    batch=setting.batch_size,
    **{"ms of PGD": 1e3 * seconds["loop"], f"ms of {num_steps} bare gradients": 1e3 * seconds["bare"]},
    **{"loop over gradients": seconds["loop"] / seconds["bare"], "image-steps/s": rate},
  )


def _alone(session: Session, setting: Setting, method: str, ours: _Ours, forward: int, peak: float) -> None:
  """Times our step by itself, so that there is a result even if the other sides fail."""
  seconds = _in_turn(session, {"lrat_jax": ours.time})["lrat_jax"]
  about = {"compile s": ours.compile_seconds, "memory GiB": ours.memory_gib}
  work = _step_flops(forward, method, session.scale.num_steps)
  _record(session, setting, method, "lrat_jax, alone", seconds, work, peak, **about)


def _repeat(session: Session, setting: Setting, ours: _Ours) -> None:
  session.record(
    "Does it run",
    what=f"three LRAT steps of {setting.network}, batch {setting.batch_size}, twice",
    result="equal to the bit" if ours.repeats() else "not equal to the bit",
  )


def _trace(session: Session, setting: Setting, ours: _Ours) -> None:
  for row in kernels.longest(lambda: ours.take(3)):
    session.record(f"Longest kernels of three LRAT steps, {setting.network}, batch {setting.batch_size}", **row)


def _measure(session: Session, setting: Setting, peak: float) -> Callable[[], None]:
  """Measures one setting except compiled PyTorch, which compiles slowly; returns a function that measures that."""
  where = f"{setting.network}, batch {setting.batch_size}: "
  ours = {}
  for method in METHODS:
    ours[method] = _Ours(session, setting, method)
    forward = flops.count(ours[method].experiment.model.apply, ours[method].variables, jnp.zeros((1, *_IMAGE)))
    session.attempt(where + "our step", _alone, session, setting, method, ours[method], forward, peak)
  session.attempt(where + "eager PyTorch", _compare, session, setting, ours, False, forward, peak)
  session.attempt(where + "steps twice", _repeat, session, setting, ours["lrat"])
  session.attempt(where + "trace", _trace, session, setting, ours["lrat"])
  if setting == session.scale.timed[0]:
    session.attempt(where + "the attack's loop", _loop_overhead, session, setting, ours["at"])
  return lambda: _compare(session, setting, ours, True, forward, peak)


def run(session: Session) -> None:
  peak = _peak(session)
  compiled = [session.attempt(setting.network, _measure, session, setting, peak) for setting in session.scale.timed]
  for compare in filter(None, compiled[: session.scale.num_compiled]):
    session.attempt("compiled PyTorch", compare)
