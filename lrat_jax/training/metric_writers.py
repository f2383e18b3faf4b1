"""Trackers of a run besides its own files: TensorBoard, and with --track Weights & Biases and MLflow.

All have the same small interface. The package of a service is imported only if the service is requested. If a service
fails during a run, a warning is printed and it is not used any more: metrics.jsonl has everything.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ml_collections import ConfigDict
from rich.console import Console

from lrat_jax.core import distributed, files
from lrat_jax.core.errors import ConfigError
from lrat_jax.evaluation import results as results_lib

_PROJECT = "lrat_jax"


class Tracker(Protocol):
  """Receives the metrics of one run."""

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Records numbers by name ("train/loss") at a training step; a resumed run may repeat a step."""

  def flush(self) -> None:
    """Sends what is queued; called at every checkpoint."""

  def close(self, failed: bool) -> None:
    """Ends the session of the run; `failed` says whether after an error."""


def _summary_writer(folder: Path, step: int):
  """A tensorboardX writer, without importing PyTorch if possible: that takes seconds, and scalars do not need it."""
  # Not in another thread, because the main thread may be importing PyTorch at the same time.
  hidden = "torch" not in sys.modules and threading.current_thread() is threading.main_thread()
  if hidden:
    sys.modules["torch"] = None  # for `import`, a missing module
  try:
    from tensorboardX import SummaryWriter
  finally:
    if hidden:
      del sys.modules["torch"]
  return SummaryWriter(str(folder), purge_step=step + 1, max_queue=1000)


class TensorBoard:
  """Event files in a folder, opened at a step; what an earlier attempt wrote after that step is no longer shown."""

  def __init__(self, folder: Path, step: int):
    self._events = _summary_writer(folder, step)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def flush(self) -> None:
    self._events.flush()

  def close(self, failed: bool) -> None:
    self._events.close()


class _WeightsAndBiases:
  """A run of Weights & Biases (https://docs.wandb.ai); WANDB_PROJECT, WANDB_MODE and its other variables apply."""

  @staticmethod
  def load() -> Any:
    import wandb

    return wandb

  def __init__(self, module: Any, workdir: Path, name: str, config: dict[str, Any], known: str | None):
    self._run = module.init(
      project=os.environ.get("WANDB_PROJECT", _PROJECT),
      name=name,
      id=known,
      resume="allow",
      dir=str(workdir),
      config=config,
    )
    self.identity = self._run.id
    # Steps get an axis of their own, because a resumed run may repeat them; the service's own steps may only increase.
    self._run.define_metric("*", step_metric="step")

  @staticmethod
  def errors(module: Any) -> tuple[type[Exception], ...]:
    return (module.errors.Error, OSError)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log({"step": step, **values})

  def flush(self) -> None:
    """Does nothing, because the service sends from a process of its own."""

  def close(self, failed: bool) -> None:
    self._run.finish(exit_code=int(failed))


class _MLflow:
  """A run of MLflow (https://mlflow.org/docs); MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME apply."""

  @staticmethod
  def load() -> Any:
    import mlflow

    return mlflow

  def __init__(self, module: Any, workdir: Path, name: str, config: dict[str, Any], known: str | None):
    self._module, self._client = module, module.MlflowClient()
    self.identity = known or self._create(name, config)
    self._client.update_run(self.identity, status="RUNNING")

  def _create(self, name: str, config: dict[str, Any]) -> str:
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
    found = self._client.get_experiment_by_name(experiment)
    identity = found.experiment_id if found else self._client.create_experiment(experiment)
    run = self._client.create_run(identity, run_name=name).info.run_id
    parameters = [self._module.entities.Param(key, str(value)) for key, value in _flat(config)]
    for start in range(0, len(parameters), 100):  # MLflow's limit per call
      self._client.log_batch(run, params=parameters[start : start + 100])
    return run

  @staticmethod
  def errors(module: Any) -> tuple[type[Exception], ...]:
    return (module.exceptions.MlflowException, OSError)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    now = int(1000 * time.time())
    metrics = [self._module.entities.Metric(name, value, now, step) for name, value in values.items()]
    self._client.log_batch(self.identity, metrics=metrics, synchronous=False)

  def flush(self) -> None:
    self._module.flush_async_logging()

  def close(self, failed: bool) -> None:
    self.flush()
    self._client.set_terminated(self.identity, "FAILED" if failed else "FINISHED")


_SERVICES: dict[str, Any] = {"wandb": _WeightsAndBiases, "mlflow": _MLflow}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Fields of a nested configuration by their paths: "data.batch_size"."""
  for key, value in config.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


class _Guarded:
  """A tracker of a service that is no longer called after the service has failed."""

  def __init__(self, name: str, tracker: Tracker, errors: tuple[type[Exception], ...], say: Callable[[str], None]):
    self._name, self._tracker, self._errors, self._say = name, tracker, errors, say
    self._failed = False

  def _try(self, call: Callable[[], None]) -> None:
    if self._failed:
      return
    try:
      call()
    except self._errors as error:
      self._failed = True
      self._say(
        f"warning: {self._name} failed, and nothing more is sent to it; metrics.jsonl contains everything "
        f"({_line(error)})"
      )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._try(lambda: self._tracker.write(step, values))

  def flush(self) -> None:
    self._try(self._tracker.flush)

  def close(self, failed: bool) -> None:
    self._try(lambda: self._tracker.close(failed))


class _Service(NamedTuple):
  """A requested service, and its imported package."""

  name: str
  kind: Any
  module: Any


def _line(error: BaseException) -> str:
  return " ".join(str(error).split()) or type(error).__name__


def find(names: Sequence[str]) -> list[_Service]:
  """The services with these names; imports their packages.

  Raises:
    ConfigError: a name other than "wandb" and "mlflow", or a package that is not installed.
  """
  services = []
  for name in dict.fromkeys(names):
    if name not in _SERVICES:
      raise ConfigError(f"--track={','.join(names)}: {name!r} is unknown; choose from {sorted(_SERVICES)}.")
    kind = _SERVICES[name]
    try:
      services.append(_Service(name, kind, kind.load()))
    except ImportError as error:
      raise ConfigError(f"--track={name} needs a package: pip install {name} ({_line(error)}).") from None
  return services


def _open(
  services: Sequence[_Service], workdir: Path, config: ConfigDict, console: Console, trackers: list[Tracker]
) -> None:
  """Adds the services' trackers to a list one by one, so that the open ones can be closed if another fails."""
  path = workdir / "trackers.json"
  known = files.read_json(path) if services and path.exists() else {}
  say = lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)
  for name, kind, module in services:
    errors = kind.errors(module)
    try:
      values = json.loads(json.dumps(config.to_dict()))
      tracker = kind(module, workdir, f"{config.name}_seed{config.seed}", values, known.get(name))
    except errors as error:
      raise ConfigError(f"--track={name}: {_line(error)}") from None
    trackers.append(_Guarded(name, tracker, errors, say))
    known[name] = tracker.identity
    results_lib.write_json(path, known)


@contextlib.contextmanager
def opened(
  services: Sequence[_Service], workdir: Path, config: ConfigDict, console: Console
) -> Iterator[list[Tracker]]:
  """Opens the services' trackers for the run in a workdir; an earlier attempt at it is continued at the services.

  trackers.json has the id of the run at each service. With several processes, only the primary process has trackers.

  Raises:
    ConfigError: a service cannot be started, for example because of a missing login.
  """
  trackers: list[Tracker] = []
  failed = True
  try:
    here = services if distributed.is_primary() else ()
    distributed.run_on_all_processes("trackers", lambda: _open(here, workdir, config, console, trackers))
    yield trackers
    failed = False
  finally:
    for tracker in trackers:
      tracker.close(failed)


def write_results(trackers: Sequence[Tracker], results: Mapping[str, Any]) -> None:
  """Writes an evaluation's accuracies at the evaluated step: "test/clean", "test/pgd20", "test/union"."""
  accuracies = {"clean": results["clean"], **results["robust"], "union": results["union"]}
  for tracker in trackers:
    tracker.write(results["step"], {f"{results['split']}/{name}": value for name, value in accuracies.items()})
    tracker.flush()
