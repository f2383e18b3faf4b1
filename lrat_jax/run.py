"""Runs a command from its options: data, devices, training, evaluation, and output files."""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.filesize import decimal

from lrat_jax import data, models
from lrat_jax.config import attack_entries, validate, validate_attacks
from lrat_jax.config.command_line import Options, expand_home, reason
from lrat_jax.convert import exchange, initial
from lrat_jax.core import distributed, malloc, preemption, sharding, topologies
from lrat_jax.core.errors import ConfigError, CorruptFileError
from lrat_jax.core.text import counted
from lrat_jax.evaluation import runner
from lrat_jax.models import user_model
from lrat_jax.training import dry_run, loop, metric_writers, rehearsal
from lrat_jax.training import workdir as workdir_lib
from lrat_jax.training.experiment import Experiment, build

# Programs that take longer to compile are cached. JAX's default of 1 s leaves out half of a small network's programs.
_WORTH_KEEPING_S = 0.1


# Imported here, because importing Matplotlib takes a second, and drawing runs in a thread during compilation.
def _draw_run(*of: Any) -> None:
  from lrat_jax.analysis import plots

  plots.draw_run(*of)


def _draw_evaluation(*of: Any) -> None:
  from lrat_jax.analysis import plots

  plots.draw_evaluation(*of)


def _asked(options: Options) -> dict[str, Any]:
  """What config.json and results.json record about the command."""
  return {"preset": options.preset, "arguments": list(options.arguments)}


def _keep_compiled(where: str, workdir: Path) -> None:
  """Sets the cache of compiled programs, by default beside the workdir; JAX's environment variables have priority."""
  if where == "off" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  folder = workdir.parent / "compilation_cache" if where == "auto" else Path(where)
  jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING_S)


def _load_dataset(config: ConfigDict, workdir: Path, trains: bool) -> tuple[data.Dataset, dict[str, Any]]:
  """The data, and what config.json records about them."""
  validate.check(config)
  workdir_lib.check(workdir, config)
  try:
    dataset = data.load_for(config.data, trains=trains)
    test = dataset.test
    corrupted = data.corrupted_for(config.data, test.labels, test.indices, dataset.image_shape)
    listed = data.listed_for(config.eval.image_list, config.data, test)
  except data.DataError as error:
    raise ConfigError(f"config.{error}") from None
  validate_attacks.check_corruptions(config, corrupted)
  about = workdir_lib.data_of_run(workdir, dataset)
  return dataset._replace(num_classes=about["num_classes"], corrupted=corrupted, listed=listed), about


def _describe_loading(dataset: data.Dataset, console: Console) -> None:
  """Prints whether images are streamed, if that was a choice, and whether an extra source is held in memory."""
  if dataset.loading:
    console.print(dataset.loading, highlight=False, markup=False, soft_wrap=True)
  if dataset.extra is not None and (held := data.bytes_in_memory(dataset.extra)):
    console.print(
      f"note: the images of config.data.extra.source are compressed, so all {decimal(held)} are held in memory; "
      "if they are saved with np.savez, only the images of a batch are read.",
      highlight=False,
      soft_wrap=True,
    )


def _load_data(
  config: ConfigDict, workdir: Path, console: Console, *, trains: bool, topology: str | None = None
) -> tuple[data.Dataset, dict[str, Any], Mesh]:
  """Loads the data, checks the configuration before anything is written, and starts JAX.

  Args:
    trains: whether more than the test split is needed.
    topology: the TPUs for which the run is rehearsed; None for this machine's own devices.
  """
  same = f"{workdir} {json.dumps(workdir_lib.portable(config), sort_keys=True)}"
  dataset, about = distributed.run_on_all_processes("data", lambda: _load_dataset(config, workdir, trains), same)
  _describe_loading(dataset, console)
  _keep_compiled(config.compilation_cache, workdir)
  split = config.mesh.model_devices
  batch_sizes = (config.data.batch_size, config.eval.batch_size) if trains else (config.eval.batch_size,)
  if slow := sharding.use_cpu_cores(*batch_sizes, num_processes=distributed.place().count, model_devices=split):
    console.print(f"note: {slow}", highlight=False, soft_wrap=True)
  mesh = topologies.described_mesh(topology, split) if topology else sharding.make_mesh(model_devices=split)
  if sharding.platform(mesh) == "cpu":
    malloc.disable_malloc_trim()
  validate.check_for_devices(config, mesh.size, trains=trains)
  return dataset, about, mesh


def _load_surrogates(config: ConfigDict, dataset: data.Dataset, num_classes: int) -> dict[str, user_model.LogitsFn]:
  """The surrogate model of each attack in the suite that names one, by attack name.

  Raises:
    ConfigError: a surrogate cannot be loaded, or does not fit the data.
  """
  images = np.asarray(data.to_float(dataset.test.images[:2]), np.float32)
  found = {}
  for name, entry in config.eval.suite.items():
    if attack_entries.SURROGATE not in entry:
      continue
    where = f"config.eval.suite.{name}.{attack_entries.SURROGATE}"
    source = expand_home(str(entry[attack_entries.SURROGATE]))
    if not source:
      raise ConfigError(f"{where}='' must name a file of weights, a run's workdir, or package.module:function.")
    try:
      stored = exchange.is_stored(source)
      logits_fn = exchange.load(source).logits_fn if stored else user_model.find(source)
      found[name], _ = user_model.checked(source, logits_fn, images, num_classes)
    except (user_model.UserModelError, exchange.WeightsError) as error:
      raise ConfigError(f"{where}={error}") from error
  return found


def _evaluate_checkpoint(
  experiment: Experiment,
  surrogates: Mapping[str, user_model.LogitsFn],
  asked: dict[str, Any],
  workdir: Path,
  console: Console,
  stop: preemption.Watch,
  drawn: Callable[[], Any],
) -> dict[str, Any]:
  """Evaluates config.eval's checkpoint; returns the content of results.json. `drawn` waits for the other plots."""

  def draw(*of: Any) -> None:
    drawn()  # Matplotlib is not thread-safe
    _draw_evaluation(*of)

  last = experiment.config.eval.checkpoint == "last"
  step, state = loop.load_checkpoint(experiment, workdir, console, last=last)
  console.print(f"Evaluating the checkpoint of step {step}, the {'last' if last else 'best in validation'}.")
  config = experiment.config
  about = {"name": config.name, "step": step, **asked, "config": workdir_lib.portable(config)}
  about["dtypes"] = {"attacks": config.eval.attack_dtype, "verdict": "float32"}
  return runner.evaluate(
    config,
    experiment.logits_fn(state),
    experiment.dataset,
    experiment.mesh,
    workdir,
    console,
    about=about,
    attacked_fn=experiment.attacked_fn(state),
    stop=stop,
    microbatch_size=experiment.microbatch_size,
    surrogates=surrogates,
    draw=draw,
  )


def _read_stored(name: str, options: Mapping[str, Any]) -> exchange.Stored | None:
  """Reads the weights that `--model` names; None if it is not a file or directory of weights."""
  if not exchange.is_stored(name):
    if given := [f"--{flag}" for flag, value in options.items() if value is not None]:
      raise ConfigError(f"{', '.join(given)}: only for a file of weights, not for --model={name}.")
    return None
  if (Path(name) / "checkpoints").exists():
    raise ConfigError(f"--model={name} is a run's workdir; evaluate it with --mode=evaluate --workdir={name}.")
  try:
    return exchange.read(name, **options)
  except exchange.WeightsError as error:
    raise ConfigError(f"--model={error}") from None


def _evaluate_model(options: Options, workdir: Path, console: Console, stop: preemption.Watch) -> None:
  """Evaluates a user-defined function or a file of weights."""
  config, name = options.config, options.model
  if (workdir / "checkpoints").exists():
    raise ConfigError(f"--workdir={workdir} contains a training run; use another --workdir for --model.")
  if config.eval.checkpoint != "best":
    raise ConfigError(
      f"config.eval.checkpoint={config.eval.checkpoint!r} is only for a run's checkpoints, not for --model."
    )
  stored = distributed.run_on_all_processes("model", lambda: _read_stored(name, options.weights))
  dataset, about_data, mesh = _load_data(config, workdir, console, trains=config.eval.split != "test")
  images = np.asarray(data.to_float(dataset.test.images[:2]), np.float32)
  dtype = config.eval.attack_dtype
  if not stored and dtype != "float32":
    raise ConfigError(
      f"config.eval.attack_dtype={dtype!r} is only for a file of weights; --model={name} has a dtype of its own."
    )
  about = {"name": name, "model": name, "data": about_data, **_asked(options)}
  own = "the function's own"
  about["dtypes"] = {"attacks": dtype, "verdict": "float32"} if stored else {"attacks": own, "verdict": own}
  if stored:
    about |= {
      "name": exchange.label(name),
      "architecture": stored.recognised.name,
      "model_content": stored.content(),
      **{name: value for name, value in stored.metadata.items() if name == "robustbench"},
    }
    console.print(stored.summary(), highlight=False, markup=False, soft_wrap=True)
  workdir_lib.check_model(runner.results_folder(workdir, config), about)
  try:
    found = stored.build().logits_fn if stored else user_model.find(name)
    logits_fn, num_classes = user_model.checked(name, found, images, dataset.num_classes)
    validate.check_for_evaluation(config, dataset.image_shape, num_classes)
    architecture = stored.recognised.name if stored else name
    surrogates = distributed.run_on_all_processes("surrogate", lambda: _load_surrogates(config, dataset, num_classes))
    microbatch_size = models.microbatch_size(architecture, *dataset.image_shape[:2], platform=sharding.platform(mesh))
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
        surrogates=surrogates,
        draw=_draw_evaluation,
        about=about,
        attacked_fn=stored.build(dtype).logits_fn if stored and dtype != "float32" else None,
      )
  except (user_model.UserModelError, exchange.WeightsError) as error:
    raise ConfigError(f"--model={error}") from error
  except jax.errors.JaxRuntimeError as error:  # a callback of the model failed, or memory ran out
    raise ConfigError(f"--model={name!r} failed while running: {reason(error)}") from error


@contextlib.contextmanager
def _drawing(draw: Callable[[], Any] | None) -> Iterator[Callable[[], Any]]:
  """Runs `draw` in a thread while the body of the context runs; yields a function that waits until it is done."""
  if draw is None:
    yield lambda: None
    return
  with futures.ThreadPoolExecutor(1) as pool:
    drawing = pool.submit(draw)
    yield lambda: futures.wait([drawing])
  drawing.result()  # raises an error of that thread here


def _initial(experiment: Experiment, workdir: Path) -> tuple[Callable[[], Mapping[str, Any]], dict[str, Any]]:
  """A function that returns the run's initial weights by name, and what its files record about them.

  The weights are read once, before anything is written. A run that has checkpoints uses those instead.
  """
  config, dataset = experiment.config, experiment.dataset
  if not config.train.init_from:
    return dict, {}
  read = functools.cache(lambda: initial.read(config, dataset.num_classes, dataset.image_shape))
  if (workdir / "checkpoints").is_dir() and (said := workdir_lib.init_of_run(workdir)):
    about = said
  else:
    about = distributed.run_on_all_processes("init_from", read).about
  return lambda: read().arrays, {"init_from": about}


def _run_config(options: Options, workdir: Path, console: Console, stop: preemption.Watch) -> None:
  """Trains, evaluates, or both; for a dry run, prints the estimated cost instead."""
  config, mode = options.config, options.mode
  services = distributed.run_on_all_processes("track", lambda: metric_writers.find(options.track))
  if options.dry_run:
    config.compilation_cache = "off"
  trains = mode != "evaluate" or options.dry_run
  if not trains and not (workdir / "checkpoints").is_dir():
    raise ConfigError(f"--workdir={workdir} contains no checkpoint to evaluate; train there first.")
  dataset, about_data, mesh = _load_data(
    config, workdir, console, trains=trains or config.eval.split != "test", topology=options.topology
  )
  if dataset.num_classes is None:
    raise ConfigError(f"{workdir / 'config.json'} does not say how many classes the data have; train there again.")
  if trains:
    extra = 0 if dataset.extra is None else len(dataset.extra.labels)
    validate.check_for_data(config, dataset.image_shape, dataset.num_classes, len(dataset.train.labels), extra)
  else:
    validate.check_for_evaluation(config, dataset.image_shape, dataset.num_classes)
  asked = {**_asked(options), "data": about_data}
  experiment = build(config, dataset, mesh)
  begin, about_init = _initial(experiment, workdir)
  asked |= about_init
  if options.dry_run:
    (rehearsal if options.topology else dry_run).describe(experiment, console)
    return
  load = lambda: {} if mode == "train" else _load_surrogates(config, dataset, dataset.num_classes)
  surrogates = distributed.run_on_all_processes("surrogate", load)
  with workdir_lib.lock_workdir(workdir), metric_writers.opened(services, workdir, config, console) as writers:
    if distributed.is_primary():
      workdir_lib.write_config(workdir, config, asked)
    counts = (f"{len(dataset.split(name).labels):,} {name}" for name in data.SPLITS if len(dataset.split(name).labels))
    console.print(
      f"{config.name}: {', '.join(counts)} images on "
      f"{counted(mesh.size, f'{sharding.platform(mesh)} device')}; workdir {workdir}",
      highlight=False,
      soft_wrap=True,
    )
    if mode != "evaluate":
      loop.train(experiment, workdir, console, stop, writers, begin)
    draws = mode != "evaluate" and distributed.is_primary()
    with _drawing(functools.partial(_draw_run, workdir, config.name, dataset.train) if draws else None) as drawn:
      if mode != "train":
        results = _evaluate_checkpoint(experiment, surrogates, asked, workdir, console, stop, drawn)
        metric_writers.write_results(writers, results)


def _profiled(folder: str | None) -> contextlib.AbstractContextManager:
  """Records a profiler trace of the context, without Python calls, because there are too many of them."""
  if folder is None:
    return contextlib.nullcontext()
  without_python = jax.profiler.ProfileOptions()
  without_python.python_tracer_level = 0
  return jax.profiler.trace(folder, profiler_options=without_python)


@contextlib.contextmanager
def _damage_of(config: ConfigDict) -> Iterator[None]:
  """Raises CorruptFileError, which names the data source, if a record is damaged.

  Records are read when they are needed, so the error may occur on one process only.
  """
  try:
    yield
  except data.DataError as error:
    raise CorruptFileError(f"config.data.source={config.data.source!r}: {error}") from None


def run(options: Options, console: Console, stop: Callable[[], bool] = lambda: False) -> None:
  """Runs the command; `stop` is as in `main`. Raises ConfigError for bad input, and what else `main` handles."""
  distributed.join(options.coordinator, options.num_processes, options.process_id)
  console.quiet = console.quiet or not distributed.is_primary()
  name = options.config.name if options.model is None else exchange.label(options.model)
  workdir = Path(options.workdir or f"runs/{name}_seed{options.config.seed}")
  watch = preemption.Watch(stop)
  # A dry run has nothing to save, so a signal ends it at once, also while it compiles.
  listening: contextlib.AbstractContextManager[Any] = contextlib.nullcontext() if options.dry_run else watch
  with listening, _profiled(options.profile), _damage_of(options.config):
    (_run_config if options.model is None else _evaluate_model)(options, workdir, console, watch)
  if options.dry_run:
    return
  left = ", ".join(sorted(path.name for path in workdir.iterdir() if not path.name.startswith(".")))
  console.print(f"Everything is in {workdir}: {left}", soft_wrap=True)
