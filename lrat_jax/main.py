"""Trains a robust classifier and evaluates it; the same command again resumes.

  python -m lrat_jax.main --config=configs/lrat.py     digits, a minute or two
  python -m lrat_jax.main --config=configs/lrat.py:cifar10,pgd,cw  two attacks
  python -m lrat_jax.main --config=configs/at.py:digits,suite=apgd    AutoAttack
  python -m lrat_jax.main --config=configs/at.py --model=weights.pt   your model
  python -m lrat_jax.compare --help   methods and seeds, one table; also report
                                      (a page on runs), convert (PyTorch files)

  --config=FILE[:DATA_SET[,ATTACK...][,suite=SUITE]]
                 FILE: configs/ at lrat irat lrat_irat trades mart; DATA_SET:
                 digits fashion_mnist cifar10 svhn; SUITE: pgd apgd autoattack
                 full unforeseen
  --config.X=Y   any field, as config.seed; lrat_jax/config/default.py explains them
  --mode=MODE    train_and_evaluate (if not given), train or evaluate
  --workdir=DIR  where the run lives; runs/NAME_seedSEED if not given
  --model=MODEL  FILE.pt, FILE.safetensors, or PACKAGE.MODULE:FUNCTION
  --dry_run      says steps, memory and time; writes nothing
  --track=LIST   follows the run on wandb, mlflow
  --coordinator=HOST:PORT --num_processes=N --process_id=I    several processes

Exit codes: 0 done, 2 bad input, 3 a metric was not finite, 4 a file could not
be written or read, 75 stopped with everything saved.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jax.tree_util import Partial
from ml_collections import ConfigDict
from rich.console import Console

from lrat_jax import data, models
from lrat_jax.analysis import plots
from lrat_jax.config import command_line, validate
from lrat_jax.convert import exchange
from lrat_jax.core import distributed, files, malloc, preemption, sharding, user_code
from lrat_jax.core.errors import ConfigError
from lrat_jax.evaluation import evaluate, runner
from lrat_jax.models import user_model
from lrat_jax.training import checkpoints, dry_run, loop, metric_writers, metrics
from lrat_jax.training import workdir as workdir_lib

BAD_INPUT, NOT_FINITE, FILES_FAILED, STOPPED = 2, 3, 4, 75


def _keep_compiled(where: str, workdir: Path) -> None:
  """Keeps compiled programs in a folder, beside the workdir unless told otherwise; the environment's word stands."""
  if where == "off" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  folder = workdir.parent / "compilation_cache" if where == "auto" else Path(where)
  jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def _load_dataset(config: ConfigDict, workdir: Path) -> data.Dataset:
  validate.check(config)
  workdir_lib.check(workdir, config)
  try:
    return data.load_for(config.data)
  except data.DataError as error:
    raise ConfigError(f"config.{error}") from None


def _load_data(config: ConfigDict, workdir: Path) -> tuple[data.Dataset, Mesh]:
  """Checks everything that can be wrong with a configuration; nothing is written before."""
  same = f"{workdir} {json.dumps(workdir_lib.portable(config), sort_keys=True)}"
  dataset = distributed.run_on_all_processes("data", lambda: _load_dataset(config, workdir), same)
  _keep_compiled(config.compilation_cache, workdir)
  sharding.use_cpu_cores(config.data.batch_size, config.eval.batch_size, num_processes=distributed.place().count)
  mesh = sharding.make_mesh()
  if mesh.devices.flat[0].platform == "cpu":
    malloc.disable_malloc_trim()
  validate.check_for_devices(config, mesh.size)
  validate.check_for_data(config, dataset.image_shape, dataset.num_classes, len(dataset.train.labels))
  return dataset, mesh


def _evaluate_checkpoint(
  experiment: loop.Experiment, workdir: Path, console: Console, stop: preemption.Watch
) -> dict[str, Any]:
  """Evaluates the best checkpoint, and returns the content of results.json."""
  best = loop.load_best(experiment, workdir, console)
  if best is None:
    raise ConfigError(f"--workdir={workdir} holds no checkpoint to evaluate; train there first.")
  step, state = best
  console.print(f"Evaluation the checkpoint of step {step}, the best in validation.")
  logits_fn = Partial(evaluate.apply_function(experiment.model), state.eval_variables)
  config = experiment.config
  options = {"stop": stop, "microbatch_size": experiment.microbatch_size, "draw": plots.draw_evaluation}
  about = {"name": config.name, "step": step, "config": workdir_lib.portable(config)}
  return runner.evaluate(
    config, logits_fn, experiment.dataset, experiment.mesh, workdir, console, about=about, **options
  )


def _read_stored(name: str) -> exchange.Stored | None:
  """What `--model` names where that is a file or directory of weights."""
  if not exchange.is_stored(name):
    return None
  if (Path(name) / "checkpoints").exists():
    raise ConfigError(f"--model={name} is a run's workdir; evaluate it by --mode=evaluate --workdir={name}.")
  try:
    return exchange.read(name)
  except exchange.WeightsError as error:
    raise ConfigError(f"--model={error}") from None


def _evaluate_model(config: ConfigDict, name: str, workdir: Path, console: Console, stop: preemption.Watch) -> None:
  """Evaluates a function or a file of weights of the user's."""
  if (workdir / "checkpoints").exists():
    raise ConfigError(f"--workdir={workdir} holds a training run; give --model another --workdir.")
  stored = distributed.run_on_all_processes("model", lambda: _read_stored(name))
  dataset, mesh = _load_data(config, workdir)
  images = np.asarray(data.to_float(dataset.test.images[:2]), np.float32)
  about = {"name": name, "model": name}
  if stored:
    about |= {"name": exchange.label(name), "architecture": stored.recognised.name}
    console.print(stored.summary(), highlight=False, markup=False, soft_wrap=True)
  try:
    dtype = "float32" if config.model.dtype == "auto" else config.model.dtype
    found = stored.build(dtype).logits_fn if stored else user_model.find(name)
    logits_fn = user_model.checked(name, found, images, dataset.num_classes)
    microbatch_size = models.microbatch_size(stored.recognised.name if stored else name, *dataset.image_shape[:2])
    with workdir_lib.lock_workdir(workdir):
      runner.evaluate(
        config,
        logits_fn,
        dataset,
        mesh,
        workdir,
        console,
        stop=stop,
        microbatch_size=microbatch_size,
        draw=plots.draw_evaluation,
        about=about,
      )
  except (user_model.UserModelError, exchange.WeightsError) as error:
    raise ConfigError(f"--model={error}") from error
  except jax.errors.JaxRuntimeError as error:  # a callback of the model's, or memory that it took
    raise ConfigError(f"--model={name!r} failed as it ran: {command_line.reason(error)}") from error


def _run_config(options: command_line.Options, workdir: Path, console: Console, stop: preemption.Watch) -> None:
  """Trains, evaluates, or both; or says what that would take."""
  config, mode = options.config, options.mode
  services = distributed.run_on_all_processes("track", lambda: metric_writers.find(options.track))
  if options.dry_run:
    config.compilation_cache = "off"
  dataset, mesh = _load_data(config, workdir)
  experiment = loop.build(config, dataset, mesh)
  if options.dry_run:
    dry_run.describe(experiment, console)
    return
  if mode == "evaluate" and not (workdir / "checkpoints").is_dir():
    raise ConfigError(f"--workdir={workdir} holds no checkpoint to evaluate; train there first.")
  with workdir_lib.lock_workdir(workdir), metric_writers.opened(services, workdir, config, console) as writers:
    _run_experiment(experiment, mode, workdir, console, stop, writers)


def _run_experiment(
  experiment: loop.Experiment,
  mode: str,
  workdir: Path,
  console: Console,
  stop: preemption.Watch,
  writers: Sequence[metric_writers.Tracker],
) -> None:
  config, dataset, mesh = experiment.config, experiment.dataset, experiment.mesh
  if distributed.is_primary():
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
    loop.train(experiment, workdir, console, stop, writers)
    if distributed.is_primary():
      plots.draw_run(workdir, config.name, dataset.train)
  if mode != "train":
    metric_writers.write_results(writers, _evaluate_checkpoint(experiment, workdir, console, stop))


def run(arguments: Sequence[str], console: Console) -> None:
  """The whole program. Raises ConfigError for bad input, and what `main` makes exit codes of."""
  options = command_line.parse(arguments)
  config, model = options.config, options.model
  if config is None:
    print(__doc__.strip())
    return
  distributed.join(options.coordinator, options.num_processes, options.process_id)
  console.quiet = console.quiet or not distributed.is_primary()
  name = config.name if model is None else exchange.label(model)
  workdir = Path(options.workdir or f"runs/{name}_seed{config.seed}")
  with preemption.Watch() as stop:
    if model is None:
      _run_config(options, workdir, console, stop)
    else:
      _evaluate_model(config, model, workdir, console, stop)
  if options.dry_run:
    return
  left = ", ".join(sorted(path.name for path in workdir.iterdir() if not path.name.startswith(".")))
  console.print(f"Everything is in {workdir}: {left}", soft_wrap=True)


class _Outcome(NamedTuple):
  """How the program ended: its exit code, the line that says why, and whether all processes of the run end so."""

  code: int = 0
  line: str = ""
  together: bool = True


def _outcome(arguments: Sequence[str]) -> _Outcome:
  again = "the same command goes on there."
  try:
    run(arguments, Console())
  except (ConfigError, user_code.UserCodeError) as error:
    return _Outcome(BAD_INPUT, f"error: {error}")
  except files.CorruptFileError as error:
    return _Outcome(BAD_INPUT, f"error: {error}", together=False)
  except metrics.NonFiniteError as error:
    return _Outcome(NOT_FINITE, f"error: {error} The checkpoints before it are intact.")
  except checkpoints.CheckpointError as error:
    return _Outcome(FILES_FAILED, f"error: {error} The checkpoints before it are intact; {again}", together=False)
  except OSError as error:
    where = f": {error.filename}" if error.filename else ""
    line = f"error: {error.strerror or error}{where}. The checkpoints are intact; {again}"
    return _Outcome(FILES_FAILED, line, together=False)
  except preemption.Preempted as stopped:
    return _Outcome(STOPPED, f"{stopped}; {again}")
  return _Outcome()


@contextlib.contextmanager
def _background_failures_in_a_line() -> Iterator[None]:
  """In place of a background thread's traceback: what ended it reaches the run as an error too."""

  def say(failed: threading.ExceptHookArgs) -> None:
    print(f"{failed.thread.name} failed: {' '.join(str(failed.exc_value).split())}", file=sys.stderr)

  before, threading.excepthook = threading.excepthook, say
  try:
    yield
  finally:
    threading.excepthook = before


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the program on command-line arguments and returns its exit code; what went wrong is one line on stderr."""
  logging.set_verbosity(logging.FATAL)  # Orbax and TFDS warn of their own defaults, and log what they raise anyway
  with _background_failures_in_a_line():
    code, line, together = _outcome(sys.argv[1:] if arguments is None else arguments)
  if line and (distributed.is_primary() or not together):
    print(line, file=sys.stderr, flush=True)
  if not together and distributed.place().count > 1:
    os._exit(code)  # the others wait for this process in the middle of a step; its end is how they learn of it
  return code


if __name__ == "__main__":
  sys.exit(main())
