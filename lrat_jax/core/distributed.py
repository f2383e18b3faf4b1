"""Runs of several processes: how they connect, which of them writes, and how an error in one ends all."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
from jax._src import distributed  # the key-value store of the processes has no public API; Orbax uses this one

from lrat_jax.core.errors import ConfigError

Result = TypeVar("Result")

_TIMEOUT_S = 300
# For barriers between connected processes: one may read its data from a slow disk.
_PATIENCE_S = 3600


class Place(NamedTuple):
  """The index of this process, and the number of processes."""

  index: int = 0  # type: ignore[assignment]  # a process index, not the method of tuples
  count: int = 1  # type: ignore[assignment]


# Environment variables of launchers that start several processes: their number, and the index of this one.
_LAUNCHERS = (("SLURM_NTASKS", "SLURM_PROCID"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"))
# Slurm sets the variables above in a batch script too, but there only srun starts more than one process.
_ONLY_UNDER_SRUN = "SLURM_STEP_NODELIST"


def _launched(environment: Mapping[str, str], platforms: str) -> bool:
  """Whether a launcher that JAX knows started this process as one of several, or the process is on a Cloud TPU."""
  for count, index in _LAUNCHERS:
    under_launcher = index in environment and (count != "SLURM_NTASKS" or _ONLY_UNDER_SRUN in environment)
    if under_launcher and int(environment.get(count, "1")) > 1:
      return True
  return platforms.startswith("tpu")  # JAX sets this if it finds a Cloud TPU


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
  missing = [f"--{name}" for name, value in given.items() if value is None]
  if missing:
    raise ConfigError(f"{' and '.join(missing)} missing: --coordinator, --num_processes and --process_id go together.")
  host, colon, port = coordinator.rpartition(":")
  if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
    raise ConfigError(f"--coordinator={coordinator!r} is not understood; write HOST:PORT, the same for every process.")
  if num_processes < 1:
    raise ConfigError(f"--num_processes={num_processes} must be 1 or more.")
  if not 0 <= process_id < num_processes:
    raise ConfigError(f"--process_id={process_id} must be in [0, {num_processes - 1}].")


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> Place:
  """Connects this process to the others of its run; call it before JAX starts its backend.

  Without arguments, JAX detects the processes on Cloud TPU, and if Slurm's srun or Open MPI's mpirun started several.
  Otherwise this is a run of one process.

  Raises:
    ConfigError: only some of the arguments are given, one is out of range, JAX is already in use, or the other
      processes do not connect within five minutes.
  """
  if (coordinator, num_processes, process_id) != (None, None, None):
    _check(coordinator, num_processes, process_id)
    where = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    _initialize(**where, cluster_detection_method="deactivate")
  elif _launched(os.environ, jax.config.jax_platforms or ""):  # type: ignore[attr-defined]  # created at run time
    _initialize()
  return place()


def _initialize(**where: Any) -> None:
  try:
    jax.distributed.initialize(**where, initialization_timeout=_TIMEOUT_S)
  except ValueError:  # a single TPU, without the service that lists its neighbours
    if where:
      raise
  except RuntimeError as error:
    reason = str(error).splitlines()[0]
    if not isinstance(error, jax.errors.JaxRuntimeError):  # JAX was already in use
      raise ConfigError(f"the processes of a run must connect before any of them uses JAX ({reason}).") from None
    raise ConfigError(f"the other processes of this run were not found within {_TIMEOUT_S} s ({reason}).") from None


def place() -> Place:
  """The index of this process and the number of processes; known before JAX has started its backend."""
  state = distributed.global_state
  return Place() if state.client is None else Place(state.process_id, state.num_processes)


def is_primary() -> bool:
  """Whether this is the primary process, which writes files and prints."""
  return place().index == 0


def _tell_all(name: str, text: str) -> list[str]:
  """The texts that the processes share at one point of the program, in the order of their indices."""
  client, (index, count) = distributed.global_state.client, place()
  if count == 1:
    return [text]
  client.key_value_set(f"lrat_jax/{name}/{index:06d}", text)
  client.wait_at_barrier(f"lrat_jax/{name}", _PATIENCE_S * 1000)
  return [said for _, said in sorted(client.key_value_dir_get(f"lrat_jax/{name}"))]


def run_on_all_processes(name: str, action: Callable[[], Result], same: str = "") -> Result:
  """Runs `action` on every process, and returns its result on this one if it succeeds on all.

  Args:
    name: of this point of the program; each point is reached once.
    same: text that must be equal on all processes.

  Raises:
    ConfigError: `action` raised it on any process, so it is raised on all; or `same` differs.
  """
  try:
    result, failure = action(), None
  except ConfigError as error:
    result, failure = None, error
  failures = _tell_all(f"{name}/failures", "ok" if failure is None else f"error: {failure}")
  if failure is not None:
    raise failure
  for index, said in enumerate(failures):
    if said != "ok":
      raise ConfigError(f"process {index}: {said.removeprefix('error: ')}")
  if len(set(_tell_all(f"{name}/same", f"={same}"))) > 1:
    raise ConfigError(
      "the processes of this run were started with different configurations; start all with the same one."
    )
  return result
