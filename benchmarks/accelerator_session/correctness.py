"""Does it run: attacks and train steps on the accelerator, compared with this machine's CPU, and repeated."""

import contextlib
import functools
import platform
import time

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from benchmarks.accelerator_session.session import Session
from lrat_jax import attacks, data, models
from lrat_jax.config import default as config_lib
from lrat_jax.core import sharding
from lrat_jax.training import experiment as experiment_lib
from lrat_jax.training import phases
from lrat_jax.training import step as step_lib

# name -> the argument of `attacks.from_config`, with the digits preset's radius.
_ATTACKS = {
  "PGD": {"name": "pgd", "epsilon": 0.2, "step_size": 0.05, "num_steps": 10},
  "CW": {"name": "cw", "epsilon": 0.2, "step_size": 0.05, "num_steps": 10},
  "APGD": {"name": "apgd", "epsilon": 0.2, "num_steps": 20},
  "FAB": {"name": "fab", "epsilon": 0.2, "num_steps": 10},
  "Square": {"name": "square", "epsilon": 0.2, "num_queries": 200},
}
# How the accelerator computes: the name in the table, the network's dtype, and the precision of float32 products.
_WAYS = (("float32", "float32", "highest"), ("float32, default", "float32", None), ("bfloat16", "bfloat16", None))


def _mesh(device: jax.Device) -> Mesh:
  return sharding.mesh_over([device])


def _experiment(session: Session, device: jax.Device, method: str = "lrat") -> experiment_lib.Experiment:
  config = config_lib.default(method, "digits")
  fields = {"train.epochs": session.scale.compared_epochs, "model.dtype": "float32", "data.placement": "device"}
  config.update_from_flattened_dict(fields | {"local_weights.kind": "lrat", "local_weights.begin_fraction": 0.0})
  return experiment_lib.build(config, data.load_for(config.data), _mesh(device))


def _steps(experiment: experiment_lib.Experiment):
  """(the compiled step, an iterator of batches on the device)."""
  phase = phases.phase_at(experiment.config, 0)
  step = step_lib.make_train_step(
    experiment.config, experiment.model, experiment.optimizer, experiment.total_steps, experiment.mesh, phase
  )
  place = data.make_device_put(experiment.dataset.train, experiment.mesh, experiment.config.data.placement)
  return step, data.train_batches(experiment.dataset.train, experiment.config.data.batch_size, 0, place)


def _train(session: Session, experiment: experiment_lib.Experiment, guard: str):
  """Trains some epochs of LRAT, all but the first step under a transfer guard; returns the variables."""
  step, batches = _steps(experiment)
  state, output = step(experiment.initial_state(), next(batches))
  start = time.perf_counter()
  with jax.transfer_guard(guard):
    for _ in range(experiment.total_steps - 1):
      state, output = step(state, next(batches))
    jax.block_until_ready(state)
  session.record(
    "Does it run",
    what=f"{experiment.total_steps} LRAT steps of the small CNN, transfer guard {guard!r}",
    result="trained",
    detail=f"loss {float(output.loss):.3f}, {time.perf_counter() - start:.1f} s",
  )
  return state.variables


def _largest(a, b) -> float:
  """The largest difference between two trees of arrays."""
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return max(float(np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)))) for x, y in leaves)


def _equal(a, b) -> bool:
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _fetch(tree):
  return jax.tree.map(np.array, jax.device_get(tree))


def _compare_step(session: Session, device: jax.Device, cpu: jax.Device) -> None:
  """Compares one LRAT step from the same state on the same images."""
  results = {}
  for name, where, precision in (
    ("CPU", cpu, "highest"), ("float32", device, "highest"), ("float32, default", device, None)
  ):  # fmt: skip
    experiment = _experiment(session, where)
    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
      step, _ = _steps(experiment)
      batch = experiment.dataset.train.take(np.arange(experiment.config.data.batch_size))
      run = lambda experiment=experiment, step=step, batch=batch: _fetch(
        step(experiment.initial_state(), sharding.shard_batch(experiment.mesh, batch._asdict()))
      )
      results[name] = run()
      again = run()
    (state, output), (cpu_state, cpu_output) = results[name], results["CPU"]
    if name != "CPU":
      session.record(
        "One LRAT step of the small CNN beside the CPU's",
        computed=name,
        loss=float(output.loss),
        **{
          "loss on CPU": float(cpu_output.loss),
          "largest parameter difference": _largest(state.variables, cpu_state.variables),
          "largest weight difference": _largest(output.adversarial_weights, cpu_output.adversarial_weights),
          "twice equal to the bit": _equal((state, output), again),
        },
      )


def _attack(name: str, logits_fn: Partial, key, images, labels):
  indices = jnp.arange(len(labels))
  return attacks.from_config(_ATTACKS[name])(attacks.example_keys(key, indices), logits_fn, images, labels).images


def _logits(model, variables, images):
  return model.apply(variables, images, train=False)


def _compare_attacks(session: Session, experiment: experiment_lib.Experiment, variables, device, cpu) -> None:
  """Compares every attack on the same network and images; the CPU classifies all results in float32."""
  split = experiment.dataset.test.take(np.arange(session.scale.compared_images))
  host = _fetch(variables)
  fields = experiment.config.model
  options = {name: fields[name] for name in models.OPTIONS}
  networks = {
    dtype: models.create(fields.name, experiment.dataset.num_classes, dtype=dtype, **options)
    for dtype in ("float32", "bfloat16")
  }
  images = np.asarray(data.to_float(split.images))
  placed = {where: jax.device_put((host, images, split.labels, jax.random.key(0)), where) for where in {cpu, device}}
  reference = jax.jit(functools.partial(_logits, networks["float32"]))

  def run(name, dtype, precision, where):
    variables, images, labels, key = placed[where]
    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
      function = jax.jit(functools.partial(_attack, name))
      logits_fn = Partial(functools.partial(_logits, networks[dtype]), variables)
      return _fetch(function(logits_fn, key, images, labels)), _fetch(function(logits_fn, key, images, labels))

  def robust(images):
    return np.argmax(reference(placed[cpu][0], jax.device_put(images, cpu)), axis=-1) == split.labels

  table = "Attacks on the small CNN beside the CPU's"
  session.record(table, attack="none", computed="float32", **{"robust %": 100 * float(np.mean(robust(images)))})

  def compare(name):
    on_cpu, _ = run(name, "float32", "highest", cpu)
    right = robust(on_cpu)
    for way, dtype, precision in _WAYS:
      first, second = run(name, dtype, precision, device)
      found = robust(first)
      session.record(
        table,
        attack=name,
        computed=way,
        **{
          "robust %": 100 * float(found.mean()),
          "robust on CPU %": 100 * float(right.mean()),
          "images with another verdict": int(np.sum(found != right)),
          "images that differ by 1e-3": int(np.sum(np.abs(first - on_cpu).max(axis=(1, 2, 3)) > 1e-3)),
          "largest difference": _largest(first, on_cpu),
          "twice equal to the bit": _equal(first, second),
        },
      )

  for name in _ATTACKS:
    session.attempt(name, compare, name)


def run(session: Session) -> None:
  device, cpu = jax.devices()[0], jax.devices("cpu")[0]
  session.record(
    "Does it run",
    what=f"{len(jax.devices())} x {device.device_kind} ({device.platform})",
    result=f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, Python {platform.python_version()}",
    detail=getattr(device.client, "platform_version", "").split("\n")[0],
  )
  experiment = _experiment(session, device)
  variables = session.attempt("training under the transfer guard", _train, session, experiment, "disallow")
  if variables is None:
    variables = _train(session, experiment, "allow")
  _compare_attacks(session, experiment, variables, device, cpu)
  session.attempt("one step beside the CPU's", _compare_step, session, device, cpu)
