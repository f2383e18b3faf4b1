"""Trains a robust classifier and judges it.

  python -m lrat_jax.main --config=configs/lrat.py                 digits, a minute on a laptop
  python -m lrat_jax.main --config=configs/lrat.py:cifar10         another data set, model, schedule
  python -m lrat_jax.main --config=configs/lrat.py:cifar10,pgd,cw  two variants in every pair
  python -m lrat_jax.main --config=configs/at.py --config.seed=1   any field of the configuration
  python -m lrat_jax.main --config=configs/at.py:digits,suite=fast --mode=evaluate  other attacks
  python -m lrat_jax.main --config=configs/at.py --model=examples.flax_nnx:make_model  yours

  --config=FILE[:DATA_SET[,ATTACK...][,suite=SUITE]]
                                        the method: configs/at.py, irat.py, lrat.py, lrat_irat.py,
                                        trades.py, mart.py; what judges it: quick (if not given),
                                        fast, standard, unseen, compare
  --config.FIELD=VALUE                  any field; lrat_jax/config.py names and explains them all
  --workdir=DIR                         where the run lives; runs/NAME_seedSEED if not given
  --mode=MODE                           train_and_evaluate (if not given), train, or evaluate
  --model=PACKAGE.MODULE:FUNCTION       judges a function from images to logits

The same command again resumes, or evaluates a finished run.
Exit codes: 0 done, 2 bad input, 3 a metric was not finite.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jax.tree_util import Partial
from ml_collections import ConfigDict
from rich.console import Console

from lrat_jax import (
  callables,
  command_line,
  config_checks,
  data,
  evaluate,
  figures,
  files,
  judging,
  metrics,
  models,
  sharding,
  train,
  workdirs,
)
from lrat_jax.config_checks import ConfigError

BAD_INPUT, NOT_FINITE = 2, 3


def _keep_compiled(where: str, workdir: Path) -> None:
  """Keeps compiled programs in a folder, beside the workdir unless told otherwise; the environment's word stands."""
  if where == "off" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  folder = workdir.parent / "compilation_cache" if where == "auto" else Path(where)
  jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def _load_data(config: ConfigDict, workdir: Path, model_name: str) -> tuple[data.Dataset, Mesh]:
  """Checks everything that can be wrong with a configuration; nothing is written before."""
  config_checks.check(config)
  workdirs.check(workdir, config)
  _keep_compiled(config.compilation_cache, workdir)
  try:
    dataset = data.load_for(config.data)
  except data.DataError as error:
    raise ConfigError(f"config.{error}") from None
  fitting = models.images_in_cache(model_name, *dataset.image_shape[:2])
  sharding.use_cpu_cores(config.data.batch_size, config.eval.batch_size, images_in_cache=fitting)
  mesh = sharding.make_mesh()
  config_checks.check_for_devices(config, mesh.size)
  config_checks.check_for_data(config, dataset.image_shape, dataset.num_classes, len(dataset.train.labels))
  return dataset, mesh


def _make_workdir(workdir: Path) -> None:
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / ".writable").touch()
    (workdir / ".writable").unlink()
  except OSError as error:
    raise ConfigError(f"--workdir={workdir} cannot be written: {error.strerror}.") from None


def _judge_checkpoint(experiment: train.Experiment, workdir: Path, console: Console) -> None:
  """Judges the best checkpoint."""
  best = train.load_best(experiment, workdir)
  if best is None:
    raise ConfigError(f"--workdir={workdir} holds no checkpoint to evaluate; train there first.")
  step, state = best
  console.print(f"Judging the checkpoint of step {step}, the best in validation.")
  logits_fn = Partial(evaluate.apply_function(experiment.model), state.judged)
  config = experiment.config
  more = {"name": config.name, "step": step, "configuration": workdirs.portable(config)}
  judging.judge(config, logits_fn, experiment.dataset, experiment.mesh, workdir, console, **more)


def _judge_callable(config: ConfigDict, name: str, workdir: Path, console: Console) -> None:
  """Judges a function of the user's."""
  if (workdir / "checkpoints").exists():
    raise ConfigError(f"--workdir={workdir} holds a training run; give --model another --workdir.")
  dataset, mesh = _load_data(config, workdir, name)
  images = np.asarray(data.to_float(dataset.test.images[:2]), np.float32)
  try:
    logits_fn = callables.checked(name, callables.find(name), images, dataset.num_classes)
    _make_workdir(workdir)
    judging.judge(config, logits_fn, dataset, mesh, workdir, console, name=name, model=name)
  except callables.CallableError as error:
    raise ConfigError(f"--model={error}") from error
  except jax.errors.JaxRuntimeError as error:  # a callback of the model's, or memory that it took
    raise ConfigError(f"--model={name!r} failed as it ran: {command_line.reason(error)}") from error


def _run_config(config: ConfigDict, mode: str, workdir: Path, console: Console) -> None:
  """Trains, judges, or both."""
  dataset, mesh = _load_data(config, workdir, config.model.name)
  experiment = train.build(config, dataset, mesh)
  if mode == "evaluate" and not (workdir / "checkpoints").is_dir():
    raise ConfigError(f"--workdir={workdir} holds no checkpoint to evaluate; train there first.")
  _make_workdir(workdir)
  with files.replacing(workdir / "config.json") as file:
    file.write((json.dumps(config.to_dict(), indent=2) + "\n").encode())
  console.print(
    f"{config.name}: {len(dataset.train.labels):,} training, {len(dataset.validation.labels):,} validation and "
    f"{len(dataset.test.labels):,} test images on {mesh.size} {mesh.devices.flat[0].platform} device(s); "
    f"workdir {workdir}",
    highlight=False,
    soft_wrap=True,
  )
  if mode != "evaluate":
    train.train(experiment, workdir, console)
    figures.draw_run(workdir, config.name, dataset.train)
  if mode != "train":
    _judge_checkpoint(experiment, workdir, console)


def run(arguments: Sequence[str], console: Console) -> None:
  """The whole program. Raises ConfigError for bad input and metrics.NonFiniteError for a run that broke down."""
  config, workdir_name, mode, model = command_line.parse(arguments)
  if config is None:
    print(__doc__.strip())
    return
  name = config.name if model is None else model.replace(":", ".")
  workdir = Path(workdir_name or f"runs/{name}_seed{config.seed}")
  if model is None:
    _run_config(config, mode, workdir, console)
  else:
    _judge_callable(config, model, workdir, console)
  left = ", ".join(sorted(path.name for path in workdir.iterdir()))
  console.print(f"Everything is in {workdir}: {left}", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the program on command-line arguments and returns its exit code; bad input is one line on stderr."""
  logging.set_verbosity(logging.ERROR)  # Orbax and TFDS warn through absl about their own defaults
  try:
    run(sys.argv[1:] if arguments is None else arguments, Console())
  except (ConfigError, files.DamagedError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT
  except metrics.NonFiniteError as error:
    print(f"error: {error} The checkpoints before it are intact.", file=sys.stderr)
    return NOT_FINITE
  return 0


if __name__ == "__main__":
  sys.exit(main())
