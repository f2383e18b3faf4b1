"""Checkpoints of a run, with Orbax: state, data iterator and validation accuracies, saved in the background.

Each contains a list of its files with their digests, which is added before the checkpoint counts as saved. A checkpoint
that differs from its list is moved aside before Orbax reads any of it, and the run resumes from the previous one.
"""

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from lrat_jax.core import distributed, files
from lrat_jax.core.errors import CheckpointError
from lrat_jax.training.step import TrainState

_LATEST_KEPT = 2
_DIGESTS = "sha256.json"
# So long because Orbax measures it by the wall clock, which may be changed while it waits.
_SAVE_TIMEOUT_S = 14 * 24 * 3600
# The list itself, and files that Orbax writes after it, from which it reads nothing that a run depends on.
_UNLISTED = ("_CHECKPOINT_METADATA", "commit_success.txt", _DIGESTS)
# Beside the directory of checkpoints, so that Orbax does not take its contents for checkpoints.
_ASIDE = "damaged_checkpoints"


class Progress(NamedTuple):
  """What a run needs to resume besides the state, as plain data.

  Attributes:
    data: the training iterator's own state.
    finished: whether this is the end of training.
  """

  data: dict[str, Any]
  finished: bool


# What Orbax and TensorStore raise when a disk is full or gone.
_WRITE_ERRORS = (ValueError, OSError)


def _save_error(step: int, error: Exception) -> CheckpointError:
  code = re.search(r"os_error_code='(\d+)'", str(error))
  reason = os.strerror(int(code[1])) if code else " ".join(str(error).split())
  return CheckpointError(f"the checkpoint of step {step} could not be written: {reason}.")


def _digests(folder: Path) -> dict[str, str]:
  """The SHA-256 of every file under a folder that belongs in the list, by its relative path."""
  found = {}
  for path in sorted(folder.rglob("*")):
    if path.is_file() and path.name not in _UNLISTED:
      with path.open("rb") as file:
        found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
  return found


def damage(folder: Path) -> str | None:
  """What is wrong with a checkpoint's files; None if they are as they were saved."""
  try:
    listed = json.loads((folder / _DIGESTS).read_text())
  except (OSError, ValueError):
    return f"its {_DIGESTS} is missing or cannot be read"
  found = _digests(folder)
  different = sorted(name for name in listed if found.get(name) != listed[name])
  return f"{different[0]} has changed since it was saved" if different else None


def _move_aside(folder: Path) -> Path:
  aside = folder.parent.parent / _ASIDE
  aside.mkdir(exist_ok=True)
  number = 1 + sum(path.name.split("_")[0] == folder.name for path in aside.iterdir())
  return folder.rename(aside / f"{folder.name}_{number}")


def quarantine_damaged(directory: Path) -> list[str]:
  """Moves damaged checkpoints out of a directory, into "damaged_checkpoints" beside it.

  Returns:
    One line for each: what is wrong with it, and where it is now.
  """
  lines = []
  steps = [path for path in directory.iterdir() if path.name.isdecimal()] if directory.is_dir() else []
  for folder in sorted(steps, key=lambda path: int(path.name)):
    reason = damage(folder)
    if reason is not None:
      moved = _move_aside(folder)
      lines.append(f"The checkpoint of step {folder.name} is damaged: {reason}. It was moved to {moved}.")
  return lines


def _rank(metrics: dict[str, float]) -> tuple[float, float]:
  """The order of checkpoints: by robust validation accuracy; of equal ones the first is the best."""
  return metrics["robust"], -metrics.get("step", 0.0)  # checkpoints of older versions have no step


class Checkpoints:
  """The checkpoints in one directory: the latest two, and the one with the highest robust validation accuracy."""

  def __init__(self, directory: Path, *, read_only: bool = False):
    policies = checkpoint_managers
    self._directory, self._saving = directory.absolute(), 0
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(
          [
            policies.LatestN(_LATEST_KEPT),
            policies.BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False),
          ]
        ),
        best_fn=lambda metrics: metrics["robust"],
        async_options=ocp.AsyncOptions(
          post_finalization_callback=self._list_files,
          timeout_secs=_SAVE_TIMEOUT_S,
          create_directories_asynchronously=False,  # if True, Orbax waits by the wall clock too, at most ten minutes
        ),
        read_only=read_only,
      ),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_: Any) -> None:
    try:
      self._manager.close()  # waits for a running save
    except _WRITE_ERRORS as error:
      raise _save_error(self._saving, error) from error

  def _list_files(self) -> None:
    """Writes the list of digests. Orbax calls it after all other files, before it moves the checkpoint into place."""
    if distributed.is_primary():
      (folder,) = (path for path in self._directory.iterdir() if path.name.split(".")[0] == str(self._saving))
      digests = json.dumps(_digests(folder)).encode()
      with files.replacing(folder / _DIGESTS) as file:
        file.write(digests)

  def latest_step(self) -> int | None:
    """The newest step with a complete checkpoint, or None."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The step with the best robust validation accuracy, the first if several are equal; the newest if none has one."""
    scored = [s for s in self._manager.all_steps() if self._manager.metrics(s) is not None]
    if not scored:
      return self.latest_step()
    return max(scored, key=lambda step: _rank(self._manager.metrics(step)))

  def best_robust(self) -> float:
    """The highest robust validation accuracy among the checkpoints; minus infinity if there is none."""
    scored = [self._manager.metrics(step) for step in self._manager.all_steps()]
    return max((metrics["robust"] for metrics in scored if metrics is not None), default=-math.inf)

  def save(self, step: int, state: TrainState, progress: Progress, validation: dict[str, float] | None) -> None:
    """Saves in the background; `validation` is {"clean", "robust"} if the model was validated at this step.

    Raises:
      CheckpointError: this checkpoint or the previous one could not be written; those before it are intact.
    """
    try:
      self._manager.wait_until_finished()
      self._saving = step
      self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress._asdict())),
        metrics=None if validation is None else validation | {"step": step},
        force=True,
      )
    except _WRITE_ERRORS as error:
      raise _save_error(self._saving, error) from error

  def restore(self, step: int, like: TrainState) -> tuple[TrainState, Progress]:
    """The state at `step`, sharded as `like` (arrays, or `jax.ShapeDtypeStruct`s with a sharding), and its progress."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()),
    )
    return restored["state"], Progress(**restored["progress"])

  def read(self, step: int) -> dict[str, Any]:
    """The state at `step` as nested dictionaries of NumPy arrays, for any configuration and devices."""
    path = self._directory / str(step) / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      tree = reader.metadata(path).item_metadata.tree
      as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
      return reader.restore(path, ocp.args.PyTreeRestore(restore_args=as_numpy))
