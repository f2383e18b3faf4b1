"""Analysis of a run's records: the weights of its instances, and whether attacks agree on the vulnerable instances."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lrat_jax import data
from lrat_jax.config import methods
from lrat_jax.config.suites import SUITES, Suite
from lrat_jax.core import files, sharding
from lrat_jax.evaluation import evaluate as evaluate_lib
from lrat_jax.training import experiment as experiment_lib
from lrat_jax.training import loop
from lrat_jax.training import workdir as workdir_lib

# The quantiles that describe a distribution: the median, and the ends of the middle 50 % and 90 %.
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)

_RECORDED = {
  "natural": "natural_weights",
  "adversarial": "adversarial_weights",
  "across": "global_weights",
  "vulnerabilities": "vulnerabilities",
}


class WeightHistory(NamedTuple):
  """The recorded weights of a run, aligned by instance. NaN if an instance was in no batch of an epoch.

  Attributes:
    epochs: int [e], from 0.
    indices: int [k], increasing: the instances' indices in the source's training split.
    labels: int [k].
    variants: str [m], the names of the training attacks.
    natural: float [e, k], local weights of the natural images.
    adversarial: float [e, k, m], local weights of the variants.
    across: float [e, k], global weights.
    vulnerabilities: float [e, k, m], in [-1, 1]; positive: the variant fools the model.
  """

  epochs: np.ndarray
  indices: np.ndarray
  labels: np.ndarray
  variants: np.ndarray
  natural: np.ndarray
  adversarial: np.ndarray
  across: np.ndarray
  vulnerabilities: np.ndarray


class Distribution(NamedTuple):
  """Quantiles of groups of instances: names of the groups [g]; quantiles [e, g, 5] at LEVELS, NaN without instances."""

  groups: np.ndarray
  quantiles: np.ndarray


class Moved(NamedTuple):
  """Instances by the movement of their weight, the largest first.

  Attributes:
    columns: int [c], their positions along the instance axis of a history.
    indices: int [c], in the source's training split.
    movement: float [c], 0 or more; `most_moved` defines it.
  """

  columns: np.ndarray
  indices: np.ndarray
  movement: np.ndarray


class Inconsistency(NamedTuple):
  """How much attacks disagree on the instances that the model gets right when clean.

  Attributes:
    names: the attacks [k].
    rank_correlation: [k, k] Spearman's, of the vulnerabilities; NaN if those of an attack do not vary.
    cross: [k, k] in [0, 1], the share of the instances that the row's attack breaks and the column's does not.
    broken: [k] in [0, 1], the share that each attack breaks.
    count: the number of instances that are right when clean.
  """

  names: list[str]
  rank_correlation: np.ndarray
  cross: np.ndarray
  broken: np.ndarray
  count: int  # type: ignore[assignment]  # of instances, not the method of tuples


def _epoch_files(workdir: Path) -> dict[int, Path]:
  found = {path.stem.removeprefix("epoch_"): path for path in (workdir / "weights").glob("epoch_*.npz")}
  return dict(sorted((int(epoch), path) for epoch, path in found.items() if epoch.isdecimal()))


def has_weights(workdir: Path) -> bool:
  """Whether a run in `workdir` recorded weights."""
  return bool(_epoch_files(workdir))


def weight_history(workdir: Path) -> WeightHistory:
  """Reads weights/epoch_*.npz. If an instance was in several batches of an epoch, the last one is used.

  Raises:
    ValueError: no weights were recorded there, or a file is damaged.
  """
  needed = ("indices", "labels", "variants", *_RECORDED.values())
  recorded = {epoch: files.read_arrays(path, needed) for epoch, path in _epoch_files(workdir).items()}
  if not recorded:
    raise ValueError(
      f"workdir={str(workdir)!r} contains no weights/epoch_*.npz; "
      "train there with config.train.num_logged_examples above 0."
    )
  rows = list(recorded.values())
  indices, first = np.unique(np.concatenate([row["indices"] for row in rows]), return_index=True)
  labels = np.concatenate([row["labels"] for row in rows])[first]
  fields = {}
  for field, name in _RECORDED.items():
    fields[field] = np.full((len(rows), len(indices), *rows[0][name].shape[1:]), np.nan)
    for aligned, row in zip(fields[field], rows, strict=True):
      aligned[np.searchsorted(indices, row["indices"])] = row[name]
  return WeightHistory(np.array(list(recorded)), indices, labels, rows[0]["variants"], **fields)


def values(history: WeightHistory, field: str) -> np.ndarray:
  """The values of a field for each epoch and instance, [e, k].

  Args:
    field: "natural", "across", "adversarial/VARIANT" or "vulnerability/VARIANT".

  Raises:
    ValueError: an unknown field; the message lists the choices.
  """
  fields = {"natural": history.natural, "across": history.across}
  for j, variant in enumerate(history.variants):
    fields[f"adversarial/{variant}"] = history.adversarial[..., j]
    fields[f"vulnerability/{variant}"] = history.vulnerabilities[..., j]
  if field not in fields:
    raise ValueError(f"field={field!r} is unknown; choose from {sorted(fields)}.")
  return fields[field]


def quantiles(column: np.ndarray) -> np.ndarray:
  """The quantiles [e, 5] at LEVELS of values [e, k], over the instances present in each epoch; NaN if there is none."""
  present = [row[~np.isnan(row)] for row in column]
  return np.array([np.quantile(row, LEVELS) if len(row) else np.full(len(LEVELS), np.nan) for row in present])


def by_class(history: WeightHistory, field: str = "natural") -> Distribution:
  """The distribution of a field of `values` in each class; the groups are the labels."""
  column, classes = values(history, field), np.unique(history.labels)
  return Distribution(classes, np.stack([quantiles(column[:, history.labels == label]) for label in classes], axis=1))


def by_attack(history: WeightHistory, kind: str = "adversarial") -> Distribution:
  """The distribution of the "adversarial" weights, or of "vulnerability", for each variant; these are the groups."""
  columns = [values(history, f"{kind}/{variant}") for variant in history.variants]
  return Distribution(history.variants, np.stack([quantiles(column) for column in columns], axis=1))


def first_difference(history: WeightHistory, field: str = "natural") -> int | None:
  """The position of the first epoch in which instances differ in a field of `values`, where reweighting begins.

  None if they never differ. Before reweighting begins, all pairs have the same weights.
  """
  for position, row in enumerate(values(history, field)):
    present = row[~np.isnan(row)]
    if len(present) and np.ptp(present) > 1e-6:
      return position
  return None


def most_moved(history: WeightHistory, count: int, field: str = "natural") -> Moved:
  """The `count` instances with the largest movement of a field of `values`.

  Movement is the sum of the absolute changes from one epoch to the next, starting with the epoch in which reweighting
  begins (`first_difference`), so the jump at its beginning is not included. An epoch without the instance is skipped:
  the change is then from the last value before it to the next value after it. Ties are in the order of the indices.
  """
  column = values(history, field)[first_difference(history, field) or 0 :].copy()
  for before, row in itertools.pairwise(column):
    row[np.isnan(row)] = before[np.isnan(row)]
  movement = np.nansum(np.abs(np.diff(column, axis=0)), axis=0)
  columns = np.argsort(-movement, kind="stable")[:count]
  return Moved(columns, history.indices[columns], movement[columns])


def look_up(split: data.Split, indices: Iterable[int]) -> data.Split:
  """The instances of a split with these indices, in the given order. Raises ValueError with a missing index."""
  rows = {int(index): row for row, index in enumerate(split.indices)}
  for index in indices:
    if int(index) not in rows:
      raise ValueError(f"index {index} is not one of the split's {len(rows)} indices.")
  return split.take(np.array([rows[int(index)] for index in indices], int))


def attack_names(per_example: Mapping[str, np.ndarray]) -> list[str]:
  """The attacks of an evaluation whose vulnerabilities can be compared: all but AutoAttack.

  AutoAttack returns the first image that broke the model, or the clean image, not the worst image that it found.
  """
  names = [name.removeprefix("robust/") for name in per_example if name.startswith("robust/")]
  return [name for name in names if f"broken_by/{name}" not in per_example]


def vulnerabilities(per_example: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> np.ndarray:
  """Every instance's vulnerability under each attack, [n, k] in [-1, 1]; positive: the attack fools the model.

  Args:
    per_example: as in a workdir's per_example.npz, or as returned by `evaluate`.
    names: the attacks [k]; by default `attack_names`.

  Raises:
    ValueError: an attack was not evaluated; the message lists the choices.
  """
  names = attack_names(per_example) if names is None else names
  found = [name.removeprefix("vulnerability/") for name in per_example if name.startswith("vulnerability/")]
  for name in names:
    if name not in found:
      raise ValueError(f"attack {name!r} was not evaluated; choose from {sorted(found)}.")
  return np.stack([per_example[f"vulnerability/{name}"] for name in names], axis=1)


def _ranks(scores: np.ndarray) -> np.ndarray:
  """Ranks from 1, mean ranks for ties: the same as `scipy.stats.rankdata`, whose import takes two seconds."""
  ordered = np.sort(scores)
  return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right") + 1) / 2


def _rank_correlation(scores: np.ndarray) -> np.ndarray:
  """Spearman's rank correlation, [k, k] from [n, k]; NaN for columns that do not vary, which have no ranks."""
  result = np.full((scores.shape[1],) * 2, np.nan)
  varied = np.flatnonzero(np.ptp(scores, axis=0) > 0)
  if len(varied):
    ranks = np.stack([_ranks(column) for column in scores[:, varied].T])
    result[np.ix_(varied, varied)] = np.corrcoef(ranks)
  return result


def inconsistency(per_example: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> Inconsistency:
  """Measures whether different attacks break the same instances.

  Only instances that are right when clean are used: the others are broken before any attack. Note that a minimum-norm
  attack (carlini_wagner) stops just beyond the decision boundary, so its vulnerabilities hardly rank the instances.

  Args:
    per_example: as in a workdir's per_example.npz, or as returned by `evaluate`.
    names: the attacks, two or more; by default `attack_names`.

  Raises:
    ValueError: an attack that was not evaluated, fewer than two attacks, or no instance that is right when clean.
  """
  names = attack_names(per_example) if names is None else list(names)
  if len(names) < 2:
    raise ValueError(f"names={names}: attacks are compared with one another, so pass two or more.")
  scores = vulnerabilities(per_example, names)
  right = np.asarray(per_example["clean_correct"], bool)
  if not right.any():
    raise ValueError(f"none of the {len(right)} clean instances is classified correctly, so no attack can break one.")
  broken = np.stack([~per_example[f"robust/{name}"][right] for name in names], axis=1)
  cross = np.mean(broken[:, :, None] & ~broken[:, None, :], axis=0)
  return Inconsistency(names, _rank_correlation(scores[right]), cross, broken.mean(axis=0), int(right.sum()))


def least_correlated(found: Inconsistency) -> tuple[int, int] | None:
  """The positions in `names` of the two attacks with the lowest rank correlation; None if no two attacks have one."""
  pairs = [(a, b) for b in range(len(found.names)) for a in range(b) if np.isfinite(found.rank_correlation[a, b])]
  return min(pairs, key=lambda pair: found.rank_correlation[pair], default=None)


def _suite(workdir: Path, config: ConfigDict, suite: str | Mapping[str, Mapping[str, Any]] | None) -> Suite:
  """The entries of the run's own suite, of a named suite with the radii of the run's preset, or the given entries."""
  if suite is None:
    return config.eval.suite.to_dict()
  if not isinstance(suite, str):
    return {name: dict(entry) for name, entry in suite.items()}
  if suite not in SUITES:
    raise ValueError(f"suite={suite!r} is unknown; choose from {sorted(SUITES)}, or pass the attacks themselves.")
  preset = workdir_lib.read_preset(workdir)
  own = methods.of_run(preset, suite)
  if own is None:
    raise ValueError(
      f"suite={suite!r} has no radii for a run of --config={preset}, which is not a method of lrat_jax; pass the "
      "attacks themselves."
    )
  return own.eval.suite.to_dict()


def load_experiment(workdir: Path, *, trust_user_code: bool = False) -> experiment_lib.Experiment:
  """Rebuilds the experiment from a run's config.json: data, model, optimiser, on all devices.

  Raises:
    ValueError: as for `workdir.load_config`, which explains `trust_user_code`, or if the data are missing.
  """
  config = workdir_lib.load_config(workdir, trust_user_code=trust_user_code)
  return experiment_lib.build(config, data.load_for(config.data), sharding.make_mesh())


def evaluate(
  workdir: Path,
  suite: str | Mapping[str, Mapping[str, Any]] | None = None,
  *,
  split: str = "test",
  num_images: int = 0,
  trust_user_code: bool = False,
) -> dict[str, np.ndarray]:
  """Attacks a run's best checkpoint; writes no files.

  Args:
    workdir: the workdir of a trained run.
    suite: by default the run's own; or the name of a suite, with the radii of the run's preset; or {name: attack} as in
      config.eval.suite.
    split: "train", "validation" or "test".
    num_images: the number of images to evaluate, from the first on; 0: all.
    trust_user_code: whether the run's configuration may name user-defined code to run; see `workdir.load_config`.

  Returns:
    The arrays [n] of a per_example.npz (see `evaluate.run_suite`), as input for `vulnerabilities` and `inconsistency`.

  Raises:
    ValueError: a workdir without a run or checkpoint, a configuration that names user-defined code without
      `trust_user_code`, or an unknown split, suite or attack.
  """
  if split not in data.SPLITS:
    raise ValueError(f"split={split!r} is unknown; choose from {list(data.SPLITS)}.")
  experiment = load_experiment(workdir, trust_user_code=trust_user_code)
  entries = _suite(workdir, experiment.config, suite)
  _, state = loop.load_checkpoint(experiment, workdir)
  chosen = data.for_evaluation(experiment.dataset.split(split))
  chosen = chosen.select(np.arange(min(num_images or len(chosen.labels), len(chosen.labels))))
  # The number of devices may differ from the run's, so the batch size is rounded up; it does not change the results.
  devices = experiment.mesh.size
  batch_size = -(-experiment.config.eval.batch_size // devices) * devices
  evaluation = evaluate_lib.run_suite(
    experiment.logits_fn(state), chosen, entries,
    batch_size=batch_size,
    mesh=experiment.mesh,
    seed=experiment.config.seed,
    microbatch_size=experiment.microbatch_size,
  )  # fmt: skip
  return evaluation.per_example
