"""Checkpoints of a run, by Orbax: state, data iterator and the best validation so far, saved in the background."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from lrat_jax.train_step import TrainState

_LATEST_KEPT = 2


class Progress(NamedTuple):
  """What else a run needs to go on, as plain data.

  Attributes:
    data: the training iterator's own state.
    finished: whether this is the end of training.
  """

  data: dict[str, Any]
  finished: bool


class Checkpoints:
  """The checkpoints in one directory: the latest two, and the one with the highest robust validation accuracy."""

  def __init__(self, directory: Path, *, read_only: bool = False):
    policies = checkpoint_managers
    self._manager = ocp.CheckpointManager(
      directory.absolute(),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(
          [
            policies.LatestN(_LATEST_KEPT),
            policies.BestN(
              get_metric_fn=lambda metrics: metrics["robust"], n=1, keep_checkpoints_without_metrics=False
            ),
          ]
        ),
        best_fn=lambda metrics: metrics["robust"],
        read_only=read_only,
      ),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_: Any) -> None:
    self._manager.close()  # waits for a save that is under way

  def latest_step(self) -> int | None:
    """The newest step that was saved whole, or None."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The step with the best validation, the earliest where several are equal; without any, the newest."""
    scored = [s for s in self._manager.all_steps() if self._manager.metrics(s) is not None]
    if not scored:
      return self.latest_step()
    return max(scored, key=lambda step: (self._manager.metrics(step)["robust"], -step))

  def save(self, step: int, state: TrainState, progress: Progress, validation: dict[str, float] | None) -> None:
    """Saves in the background; `validation` {"clean", "robust"} where the model was validated at this step."""
    self._manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress._asdict())),
      metrics=validation,
      force=True,
    )

  def restore(self, step: int, like: TrainState) -> tuple[TrainState, Progress]:
    """The state at `step`, placed as `like` is, and its progress."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()),
    )
    return restored["state"], Progress(**restored["progress"])
