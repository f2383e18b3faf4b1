"""A first comparison: adversarial training, LRAT and GAIRAT, for as many epochs as the time allows."""

import shutil
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from benchmarks.accelerator_session import images, speed, weights
from benchmarks.accelerator_session.session import METHODS, Session
from lrat_jax import data
from lrat_jax.config import default as config_lib
from lrat_jax.core import sharding
from lrat_jax.core.errors import Preempted
from lrat_jax.training import experiment as experiment_lib
from lrat_jax.training import loop, metrics, phases
from lrat_jax.training import step as step_lib

# The share of the time that is planned for steps; the rest is for validation, checkpoints and errors of the estimate.
_USED = 0.75
# Images per second relative to the speed part, whose batches are larger and therefore faster.
_RATE_AT_SMALL_BATCH = 0.9
# Compile time of the first method, including validation, relative to that of one step; and of a later method relative
# to the first, with which it shares the step without weights and the tuning of convolutions.
_ALL_PROGRAMS, _LATER_PROGRAMS = 1.5, 0.5
# `--out` gets at most 8 files, two of which are tables, and stays under 64 MiB.
_MOST_FILES, _MOST_BYTES = 6, 60 * 2**20


def _config(session: Session, method: str, epochs: int) -> ConfigDict:
  scale = session.scale
  config = config_lib.default(method, f"{session.preset},{METHODS[method].attacks}")
  config.update_from_flattened_dict(
    {
      "model.name": scale.network,
      "data.batch_size": scale.train_batch_size,
      "data.placement": "device",
      "train.epochs": epochs,
      "train.log_every_steps": 50,
      "train.checkpoint_every_steps": 10**6,
      "train.num_logged_examples": 256,
      **{f"train_attacks.{name}.num_steps": scale.num_steps for name in config.train_attacks},
      "validation_attack.num_steps": scale.num_steps,
      "optimizer.schedule": "one_cycle",
      "optimizer.learning_rate": scale.learning_rate,
      "optimizer.warmup": 0.3,
      **METHODS[method].fields,
    }
  )
  return config


def _estimates(session: Session, dataset: data.Dataset) -> tuple[dict[str, float], float]:
  """Seconds of a step of AT and of LRAT, and of compiling: from the speed part, or measured and estimated here."""
  rows = [row for row in session.records(speed.TABLE) if row["network"] == session.scale.network]
  rows = {row["method"]: row for row in rows if row["side"].startswith("lrat_jax")}
  if len(rows) < 2:
    return {method: _measure(session, dataset, method) for method in ("at", "lrat")}, session.scale.compile_seconds
  rates = {method: _RATE_AT_SMALL_BATCH * row["images/s"] for method, row in rows.items()}
  steps = {method: session.scale.train_batch_size / rate for method, rate in rates.items()}
  return steps, _ALL_PROGRAMS * max(row["compile s"] for row in rows.values())


def _measure(session: Session, dataset: data.Dataset, method: str) -> float:
  """Seconds of one step with all its weights in use."""
  config = _config(session, method, 1)
  config.local_weights.begin_fraction = 0.0
  experiment = experiment_lib.build(config, dataset, sharding.make_mesh(1))
  step = step_lib.make_train_step(
    config, experiment.model, experiment.optimizer, experiment.total_steps, experiment.mesh,
    phases.phase_at(config, 0),
  )  # fmt: skip
  place = data.make_device_put(dataset.train, experiment.mesh, "device")
  batches = data.train_batches(dataset.train, config.data.batch_size, 0, place)
  state, _ = step(experiment.initial_state(), next(batches))
  jax.block_until_ready(state)
  count = 2 if session.trial else 10
  start = time.perf_counter()
  for _ in range(count):
    state, _ = step(state, next(batches))
  jax.block_until_ready(state)
  return (time.perf_counter() - start) / count


def plan(
  wanted: list[str],
  seconds: float,
  compile_seconds: float,
  epoch_seconds: dict[str, float],
  least: int,
  most: int,
) -> tuple[list[str], int]:
  """The methods and the number of epochs that fit in `seconds`: all that are wanted, or as many as get `least` epochs.

  For every method, half of the epochs are adversarial training. In the other half, methods that compare with natural
  images take LRAT's time. Both times in `epoch_seconds` are for one attack in a step.
  """
  for count in range(len(wanted), 0, -1):
    methods = wanted[:count]
    halves = [
      METHODS[method].cost * (epoch_seconds["at"] + epoch_seconds["lrat" if "lrat" in method else "at"]) / 2
      for method in methods
    ]
    compiling = compile_seconds * (1 + _LATER_PROGRAMS * (count - 1))
    epochs = int(_USED * (seconds - compiling) / sum(halves))
    if epochs >= least:
      return methods, min(epochs, most)
  return wanted[:1], least


def _keep(session: Session, folder: Path, name: str) -> str:
  """Copies a model's files to the session's folder if there is room; returns a text that says whether."""
  out, files = Path(session.out), sorted(folder.glob(f"{name}-*-of-*.safetensors"))
  there = list(out.glob("*.safetensors"))
  if len(there) + len(files) > _MOST_FILES or sum(p.stat().st_size for p in there + files) > _MOST_BYTES:
    return "no room in --out; in --scratch"
  for path in files:
    shutil.copy(path, out)
  return "saved"


def _train(session: Session, dataset: data.Dataset, method: str, epochs: int) -> None:
  workdir = Path(session.scratch) / "runs" / method
  workdir.mkdir(parents=True, exist_ok=True)
  config = _config(session, method, epochs)
  experiment = experiment_lib.build(config, dataset, sharding.make_mesh(1))
  start = time.perf_counter()
  stop = lambda: session.left() < 4
  ended = "whole"
  try:
    loop.train(experiment, workdir, Console(), stop)
  except (Preempted, metrics.NonFiniteError) as error:
    ended = str(error)
  seconds = time.perf_counter() - start
  row = {"method": method, "epochs": epochs, "batch": config.data.batch_size, "seconds": seconds, "ended": ended}
  if ended == "whole":
    step, state = loop.load_checkpoint(experiment, workdir)
    rows = [row for row in metrics.read_rows(workdir / "metrics.jsonl") if row["split"] == "validation"]
    (best,) = (row for row in rows if row["step"] == step)
    folder = Path(session.scratch) / "weights"
    folder.mkdir(exist_ok=True)
    weights.save(
      folder, method, experiment.model, state.eval_variables, session.scale.file_bytes, method=method, step=step
    )
    row |= {"best step": step, **{f"validation {name} %": 100 * best[name] for name in ("clean", "robust")}}
    row |= {"weights": _keep(session, folder, method)}
  session.record("Training", **row)


def run(session: Session) -> None:
  dataset, scale = images.load(session), session.scale
  steps_per_epoch = data.steps_per_epoch(dataset.train, scale.train_batch_size)
  measured, compile_seconds = _estimates(session, dataset)
  epoch_seconds = {method: steps_per_epoch * seconds for method, seconds in measured.items()}
  wanted = list(session.methods)
  methods, epochs = plan(wanted, session.left(), compile_seconds, epoch_seconds, scale.least_epochs, scale.most_epochs)
  left_out = wanted[len(methods) :]
  session.record(
    "Training",
    method=f"planned: {', '.join(methods)}" + (f"; left out: {', '.join(left_out)}" if left_out else ""),
    epochs=epochs,
    batch=scale.train_batch_size,
    **{f"seconds of an epoch, {method}": seconds for method, seconds in epoch_seconds.items()},
  )
  for method in methods:
    session.attempt(method, _train, session, dataset, method, epochs)
