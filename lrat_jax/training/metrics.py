"""Training metrics: rows of numbers from step outputs, their writer, and the record of weights."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from lrat_jax.core import files
from lrat_jax.core.errors import NonFiniteError
from lrat_jax.training import metric_writers
from lrat_jax.training.step import StepOutput

Row = dict[str, Any]

_QUANTILES = {"q05": 0.05, "median": 0.5, "q95": 0.95}
_SCALARS = ("loss", "gradient_norm", "parameter_norm")
_EVERY_ROW = {"split": str, "step": int, "epoch": int}
_WEIGHTS = ("natural_weights", "adversarial_weights", "global_weights", "vulnerabilities")


def check_finite(first_step: int, outputs: Sequence[StepOutput]) -> None:
  """Raises NonFiniteError naming the first step (its number, from 1) and metric that is NaN or infinite."""
  for step, output in enumerate(outputs, first_step):
    for name in (*_SCALARS, *_WEIGHTS):
      if not np.all(np.isfinite(getattr(output, name))):
        raise NonFiniteError(f"{name} is not finite at step {step}.")


def training_row(step: int, epoch: int, outputs: Sequence[StepOutput]) -> Row:
  """One row: means over some steps, the last of which is `step`, and quantiles of their weights."""
  row: Row = {"split": "train", "step": step, "epoch": epoch, "steps": len(outputs)}
  accuracies = {"natural_correct": "natural_accuracy", "adversarial_correct": "adversarial_accuracy"}
  for field, name in {**{scalar: scalar for scalar in _SCALARS}, **accuracies}.items():
    row[name] = float(np.mean([np.mean(getattr(output, field), dtype=np.float64) for output in outputs]))
  for field in _WEIGHTS:
    values = np.concatenate([np.ravel(getattr(output, field)) for output in outputs])
    for label, quantile in _QUANTILES.items():
      row[f"{field}/{label}"] = float(np.quantile(values, quantile))
  return row


def drawn_shares(attacks: Sequence[str], outputs: Sequence[StepOutput]) -> Row:
  """For each training attack, the fraction of the steps for which it was drawn, as "drawn/ATTACK"."""
  drawn = np.array([output.drawn for output in outputs])
  return {f"drawn/{name}": float(np.mean(drawn == number)) for number, name in enumerate(attacks)}


def epoch_means(rows: Iterable[Row], epoch: int, names: Sequence[str]) -> dict[str, float]:
  """Means of an epoch's training rows, each weighted by its number of steps."""
  rows = [row for row in rows if row["split"] == "train" and row["epoch"] == epoch]
  total = sum(row["steps"] for row in rows)
  return {name: sum(row[name] * row["steps"] for row in rows) / total for name in names}


def read_rows(path: Path) -> list[Row]:
  """The rows of a metrics.jsonl; an incomplete last line, left by a killed run, is skipped.

  Raises:
    files.CorruptFileError: another line is not a row.
  """
  lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
  return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _row(line: str, where: str) -> Row:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):
    row = None
  if not isinstance(row, dict) or not all(isinstance(row.get(name), kind) for name, kind in _EVERY_ROW.items()):
    raise files.CorruptFileError(f"{where} is damaged; remove that line.")
  return row


class MetricWriter:
  """Writes rows to metrics.jsonl and TensorBoard; opened at a step, it drops what an earlier attempt wrote after it.

  Without `writes` it only keeps its own rows in memory: of several processes, only one writes. `writers` receive every
  row, as TensorBoard does; the caller closes them.
  """

  def __init__(self, workdir: Path, step: int, *, writes: bool = True, writers: Sequence[metric_writers.Tracker] = ()):
    self._file: TextIO | None = None
    self._board: metric_writers.TensorBoard | None = None
    self._writers = list(writers)
    self.rows: list[Row] = []
    if writes:
      self._open(workdir, step)

  def _open(self, workdir: Path, step: int) -> None:
    self._path = workdir / "metrics.jsonl"
    self.rows = [row for row in read_rows(self._path) if row["step"] <= step]
    with files.replacing(self._path) as file:
      file.write("".join(json.dumps(row) + "\n" for row in self.rows).encode())
    self._file = self._path.open("a")
    self._board = metric_writers.TensorBoard(workdir / "tensorboard", step)
    self._writers.insert(0, self._board)

  def __enter__(self) -> "MetricWriter":
    return self

  def __exit__(self, *_: Any) -> None:
    if self._file is not None:
      self._file.close()
      self._board.close(failed=False)

  def write(self, row: Row) -> None:
    self.rows.append(row)
    if self._file is None:
      return
    self._file.write(json.dumps(row, allow_nan=False) + "\n")
    self._file.flush()
    values = {f"{row['split']}/{name}": value for name, value in row.items() if isinstance(value, float)}
    for tracker in self._writers:
      tracker.write(row["step"], values)

  def flush(self) -> None:
    for tracker in self._writers:
      tracker.flush()


class WeightRecord:
  """The weights that training used for a fixed sample of instances: one npz per epoch.

  Arrays of a file, with a row for each time a sampled instance was in a batch of the epoch: "step", "indices" (in the
  source's training split), "labels", "natural_weights" [n], "adversarial_weights" [n, m], "global_weights" [n],
  "vulnerabilities" [n, m]; "variants" [m] names the training attacks.
  """

  def __init__(
    self, directory: Path, indices: np.ndarray, size: int, variants: Sequence[str], step: int, *, writes: bool = True
  ):
    order = np.random.default_rng(0).permutation(len(indices))
    self._directory, self._variants = directory, list(variants)
    self._sample = indices[order[: size if writes else 0]]
    self._epoch: int | None = None
    self._rows: list[dict[str, np.ndarray]] = []
    self._resume_step = step

  def _file(self, epoch: int) -> Path:
    return self._directory / f"epoch_{epoch:04d}.npz"

  def _begin(self, epoch: int) -> None:
    """Starts an epoch, with the rows that an earlier attempt saved up to the checkpoint."""
    self._epoch, self._rows = epoch, []
    if self._file(epoch).exists():
      saved = files.read_arrays(self._file(epoch), ("step", "indices", "labels", *_WEIGHTS))
      kept = saved["step"] <= self._resume_step
      self._rows = [{name: array[kept] for name, array in saved.items() if name != "variants"}]

  def add(self, epoch: int, first_step: int, outputs: Sequence[StepOutput]) -> None:
    """Adds the sampled instances in the outputs of some steps."""
    if epoch != self._epoch:
      self._begin(epoch)
    of_all = lambda name: np.concatenate([getattr(output, name) for output in outputs])
    steps = np.arange(first_step, first_step + len(outputs), dtype=np.int32)
    mine = np.isin(of_all("indices"), self._sample)
    row = {name: of_all(name)[mine] for name in ("indices", "labels", *_WEIGHTS)}
    self._rows.append({"step": np.repeat(steps, [len(output.indices) for output in outputs])[mine], **row})

  def save(self) -> None:
    """Writes the current epoch's file."""
    if self._rows and len(self._sample):
      self._directory.mkdir(exist_ok=True)
      arrays = {name: np.concatenate([row[name] for row in self._rows]) for name in self._rows[0]}
      files.write_arrays(self._file(self._epoch), {"variants": np.array(self._variants), **arrays})
