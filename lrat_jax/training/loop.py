"""The training loop: from an experiment to checkpoints in a workdir; resumes where an earlier attempt stopped."""

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lrat_jax import attacks, data
from lrat_jax.config.default import SAMPLED, variant_names
from lrat_jax.core import distributed, fsdp, sharding
from lrat_jax.core.errors import ConfigError, Preempted
from lrat_jax.core.text import seconds_text
from lrat_jax.core.typing import Variables
from lrat_jax.evaluation import batches
from lrat_jax.training import checkpoints as checkpoints_lib
from lrat_jax.training import metric_writers, metrics, phases
from lrat_jax.training import step as step_lib
from lrat_jax.training.experiment import Experiment

# The number of calls by which devices may lag behind Python. Beyond 32, JAX's CPU devices deadlock.
MOST_IN_FLIGHT = 16


class _Validator:
  """Clean and robust accuracy on the validation split; compiled once for all epochs."""

  def __init__(self, experiment: Experiment):
    make = functools.partial(batches.make_evaluator, experiment.model)
    shared = {"batch_size": experiment.config.eval.batch_size, "mesh": experiment.mesh}
    attack = attacks.from_config(experiment.config.validation_attack)
    self._clean = make(None, **shared)
    self._attacked = make(attacks.microbatch(attack, experiment.microbatch_size), **shared)
    self._split = experiment.dataset.validation
    self._key = jax.random.key(experiment.config.seed)

  def __call__(self, variables: Variables) -> dict[str, float]:
    clean = self._clean(variables, self._split, self._key)["correct"]
    attacked = self._attacked(variables, self._split, self._key)["correct"]
    return {"clean": float(np.mean(clean)), "robust": float(np.mean(clean & attacked))}


class _Loop:
  """The host's side of training: what happens between two steps, one method for each task."""

  def __init__(
    self,
    experiment: Experiment,
    workdir: Path,
    saved: checkpoints_lib.Checkpoints,
    console: Console,
    stop: Callable[[], bool],
    writers: Sequence[metric_writers.Tracker],
    initial: Callable[[], Mapping[str, Any]],
  ):
    self._experiment, self._config = experiment, experiment.config
    self._saved, self._console, self._stop, self._writers = saved, console, stop, writers
    self._validate = _Validator(experiment)
    place = data.make_device_put(experiment.training_source, experiment.mesh, self._config.data.placement)
    self._batches = data.train_batches(
      experiment.training_source,
      self._config.data.batch_size,
      self._config.seed,
      place,
      ahead=max(2, self._config.train.steps_per_call),
    )
    self.step = saved.latest_step() or 0
    self.state = experiment.initial_state({} if self.step else initial())
    self.finished = False
    if self.step:
      self.state, progress = saved.restore(self.step, self.state)
      self._batches.set_state(progress.data)
      self.finished = progress.finished
    self._best_robust = saved.best_robust()
    self._held: tuple | None = None
    self._pending: list[step_lib.StepOutput] = []
    self._compiled = functools.cache(
      lambda *of: step_lib.make_train_step(
        self._config, experiment.model, experiment.optimizer, experiment.total_steps, experiment.mesh, *of
      )
    )
    self._workdir = workdir

  def run(self) -> None:
    """Trains from the current step to the last."""
    config, experiment = self._config, self._experiment
    names = variant_names(config)
    indices = experiment.dataset.train.indices
    size = min(config.train.num_logged_examples, len(indices))
    leads = distributed.is_primary()
    self._weights = metrics.WeightRecord(self._workdir / "weights", indices, size, names, self.step, writes=leads)
    writer = metrics.MetricWriter(self._workdir, self.step, writes=leads, writers=self._writers)
    with writer as self._writer, self._progress_bar() as bar:
      task = bar.add_task("", total=experiment.total_steps, completed=self.step, rate="compiling", epoch="")
      while self.step < experiment.total_steps:
        epoch = self.step // experiment.steps_per_epoch
        bar.update(task, epoch=f"{epoch + 1}/{config.train.epochs}")
        with sharding.memory_for("config.data.batch_size", config.data.batch_size, experiment.mesh):
          stopped = self._run_epoch(epoch, lambda rate: bar.update(task, completed=self.step, rate=rate))
        if stopped and self.step < experiment.total_steps:
          raise Preempted(f"Stopped at step {self.step} of {experiment.total_steps}, with everything saved")

  def _progress_bar(self) -> Progress:
    return Progress(
      TextColumn("epoch {task.fields[epoch]}"),
      BarColumn(bar_width=10),
      TextColumn("step {task.completed}/{task.total}"),
      TimeRemainingColumn(),
      TextColumn("left  {task.fields[rate]}"),
      console=self._console,
      transient=True,
      refresh_per_second=1,  # each refresh takes time from Python and from CPU devices
    )

  def _run_epoch(self, epoch: int, show: Callable[[str], None]) -> bool:
    """Trains to the end of an epoch, or until the run is asked to stop; returns whether it was asked."""
    config, experiment = self._config, self._experiment
    phase = phases.phase_at(config, epoch)
    end = (epoch + 1) * experiment.steps_per_epoch
    start_time, start_step = time.perf_counter(), self.step
    self._row_start = time.perf_counter()
    stopped = False
    while self.step < end and not stopped:
      self._take_steps(phase, end)
      stopped = self._stop()
      last = self.step == experiment.total_steps
      due_to_save = stopped or last or self.step % config.train.checkpoint_every_steps == 0
      if self.step % config.train.log_every_steps == 0 or due_to_save or self.step == end:
        show(self._log(epoch))
      if due_to_save and self.step < end:
        self._save(None)
    if self.step < end:
      return stopped
    training_seconds = time.perf_counter() - start_time
    with sharding.memory_for("config.eval.batch_size", config.eval.batch_size, experiment.mesh):
      validation = self._validate(fsdp.whole(self.state.eval_variables, experiment.mesh))
    self._writer.write({"split": "validation", "step": self.step, "epoch": epoch, **validation})
    self._weights.save()
    if due_to_save:
      self._save(validation)
    else:
      self._hold(validation)
    self._print_epoch(epoch, phase, validation, training_seconds, self.step - start_step)
    return stopped

  def _take_steps(self, phase: phases.Phase, end: int) -> None:
    """Runs `train.steps_per_call` steps in one call, or one step if a row, a save or the epoch's end is due earlier."""
    train = self._config.train
    due = [(self.step // every + 1) * every for every in (train.log_every_steps, train.checkpoint_every_steps)]
    count = train.steps_per_call if self.step + train.steps_per_call <= min(*due, end) else 1
    take = self._compiled(phase, count)
    with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
      self.state, output = take(self.state, *itertools.islice(self._batches, count))
    self._pending.append(output)
    self.step += count
    jax.block_until_ready([call.loss for call in self._pending[-MOST_IN_FLIGHT:][:1]])

  def _log(self, epoch: int) -> str:
    """Fetches the pending outputs, checks that they are finite, writes their row, and returns the speed as text."""
    outputs = [output for call in sharding.fetch(self._pending) for output in step_lib.outputs_by_step(call)]
    first_step = self.step - len(outputs) + 1
    metrics.check_finite(first_step, outputs)
    seconds = time.perf_counter() - self._row_start
    row = metrics.training_row(self.step, epoch, outputs)
    if self._config.train.variants == SAMPLED:
      row |= metrics.drawn_shares(list(self._config.train_attacks), outputs)
    row["images_per_second"] = len(outputs) * self._config.data.batch_size / seconds
    self._writer.write(row)
    self._weights.add(epoch, first_step, outputs)
    self._pending, self._row_start = [], time.perf_counter()
    return f"{len(outputs) / seconds:.2f} steps/s, {row['images_per_second']:,.0f} images/s"

  def _progress(self) -> checkpoints_lib.Progress:
    return checkpoints_lib.Progress(self._batches.get_state(), finished=self.step == self._experiment.total_steps)

  def _hold(self, validation: dict[str, float]) -> None:
    """Keeps a copy of the best state in memory until the next save; an epoch may be too short to save after each."""
    if validation["robust"] > self._best_robust:
      self._best_robust = validation["robust"]
      self._held = (self.step, jax.tree.map(jnp.copy, self.state), self._progress(), validation)

  def _save(self, validation: dict[str, float] | None) -> None:
    """Saves the best state since the last save, if it is better than all before, and the current one."""
    self._writer.flush()
    self._weights.save()
    if self._held is not None:
      self._saved.save(*self._held)
      self._held = None
    self._saved.save(self.step, self.state, self._progress(), validation)
    if validation is not None:
      self._best_robust = max(self._best_robust, validation["robust"])

  def _print_epoch(self, epoch: int, phase, validation, seconds: float, steps: int) -> None:
    names = ("loss", "natural_accuracy", "adversarial_accuracy")
    means = metrics.epoch_means(self._writer.rows, epoch, names)
    active = [name for name, on in zip(("local weights", "global weights", "AWP"), phase, strict=True) if on]
    self._console.print(
      f"epoch {epoch + 1:>3}/{self._config.train.epochs}  loss {means['loss']:.3f}"
      f"  train {100 * means['natural_accuracy']:.1f} natural {100 * means['adversarial_accuracy']:.1f} adversarial"
      f"  validation {100 * validation['clean']:.1f} clean {100 * validation['robust']:.1f} robust"
      f"  {steps * self._config.data.batch_size / seconds:,.0f} images/s"
      f"  {seconds_text(seconds)}" + (f"  [{', '.join(active)}]" if active else ""),
      highlight=False,
      markup=False,
      soft_wrap=True,
    )


def _quarantine(workdir: Path, console: Console) -> None:
  """Moves damaged checkpoints of a workdir aside, with a warning for each."""
  if distributed.is_primary():
    for line in checkpoints_lib.quarantine_damaged(workdir / "checkpoints"):
      console.print(f"warning: {line}", highlight=False, markup=False, soft_wrap=True)
  sharding.wait_for_all("damaged checkpoints are set aside")


def train(
  experiment: Experiment,
  workdir: Path,
  console: Console,
  stop: Callable[[], bool] = lambda: False,
  writers: Sequence[metric_writers.Tracker] = (),
  initial: Callable[[], Mapping[str, Any]] = dict,
) -> None:
  """Trains to the last step in `workdir`, or prints that training there is finished.

  Args:
    stop: called after every call of one or more steps (`train.steps_per_call`), on every process; if it returns True,
      the last step is saved and the run ends.
    writers: receive every row of metrics, in addition to the workdir's files.
    initial: returns the initial variables by name (`step.begin_with`); called only if there is no checkpoint yet.

  Raises:
    checkpoints.CheckpointError: a checkpoint could not be written; those before it are intact.
    metrics.NonFiniteError: a metric became NaN or infinite; the checkpoints before it are intact.
    Preempted: `stop` returned True before the last step.
  """
  _quarantine(workdir, console)
  with checkpoints_lib.Checkpoints(workdir / "checkpoints") as saved:
    loop = _Loop(experiment, workdir, saved, console, stop, writers, initial)
    if loop.finished:
      console.print(f"Training in {workdir} is finished ({loop.step} steps).", soft_wrap=True)
      return
    if loop.step:
      console.print(f"Resuming {workdir} from step {loop.step} of {experiment.total_steps}.", soft_wrap=True)
    loop.run()


def load_checkpoint(
  experiment: Experiment, workdir: Path, console: Console | None = None, *, last: bool = False
) -> tuple[int, step_lib.TrainState]:
  """(step, state) of the checkpoint with the best validation in a workdir; its variables are replicated.

  Damaged checkpoints are moved aside with a warning on the console, and the best of the others is used.

  Args:
    last: use the newest checkpoint instead of the best.

  Raises:
    ConfigError: the workdir has no complete checkpoint.
  """
  if (workdir / "checkpoints").is_dir():
    _quarantine(workdir, console or Console())
    with checkpoints_lib.Checkpoints(workdir / "checkpoints", read_only=True) as saved:
      if (step := saved.latest_step() if last else saved.best_step()) is not None:
        return step, saved.restore(step, experiment.abstract_state(evaluates=True))[0]
  raise ConfigError(f"workdir={str(workdir)!r} contains no checkpoint to evaluate; train there first.")
