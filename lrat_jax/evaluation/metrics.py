"""Metrics over several attacks of a suite: unions, held-out attacks, areas over strengths, shares of the best known.

All are computed from per-example results, bool [attacks, n]: whether the model is right on an image, both clean and
under an attack. Functions that return values per example, float [n], have the metric as the mean of these values, so
that differences between models stay paired.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrat_jax.config import attack_entries, suites
from lrat_jax.core.arguments import as_number

# Separates an attack's name from its strength in the names of a suite's entries.
_AT = "@"


def union(robust: np.ndarray) -> np.ndarray:
  """Whether the model is right under every attack: bool [n] from bool [attacks, n]."""
  return np.all(robust, axis=0)


def mean(robust: np.ndarray) -> np.ndarray:
  """The share of the attacks under which the model is right: float [n] from bool [attacks, n], one attack or more."""
  return np.mean(robust, axis=0)


def lowest(robust: np.ndarray) -> float:
  """The lowest accuracy under any of the attacks, from bool [attacks, n], one attack or more."""
  return float(np.mean(robust, axis=1).min())


def area(strengths: Sequence[float], robust: np.ndarray, clean_correct: np.ndarray) -> np.ndarray:
  """The area under accuracy over strength, from 0 (clean) to the largest, divided by the largest: float [n].

  Its mean is 1 for a model that is always right, and the clean accuracy for a model that is equally accurate at all
  strengths. Between strengths, accuracy is interpolated linearly (the trapezoidal rule).

  Args:
    strengths: [k], increasing, above 0.
    robust: bool [k, n], at each strength.
    clean_correct: bool [n].
  """
  places = np.concatenate([[0.0], strengths])
  curve = np.concatenate([clean_correct[None], robust]).astype(float)
  widths = np.diff(places)[:, None]
  return np.sum(widths * (curve[1:] + curve[:-1]) / 2, axis=0) / places[-1]


def competitiveness(robust: np.ndarray, references: np.ndarray) -> np.ndarray:
  """The mean over attacks of accuracy divided by the best known accuracy: float [n] (Dai et al., arXiv:2302.10980).

  Args:
    robust: bool [attacks, n], one attack or more.
    references: [attacks], the best known accuracies, in (0, 1].
  """
  return np.mean(robust / np.asarray(references)[:, None], axis=0)


def ladders(names: Sequence[str]) -> dict[str, list[tuple[float, str]]]:
  """The attacks with two or more strengths, from entries "NAME@STRENGTH": NAME -> (strength, entry), increasing."""
  found: dict[str, list[tuple[float, str]]] = {}
  for entry in names:
    name, _, text = entry.rpartition(_AT)
    try:
      strength = as_number(text, entry)
    except ValueError:
      continue
    if name and strength > 0:
      found.setdefault(name, []).append((strength, entry))
  return {name: sorted(rungs) for name, rungs in found.items() if len(rungs) > 1}


def areas(per_example: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
  """The `area` of each of the suite's `ladders`, float [n]."""
  found = {}
  for name, rungs in ladders(names).items():
    robust = np.stack([per_example[f"robust/{entry}"] for _, entry in rungs])
    found[name] = area([strength for strength, _ in rungs], robust, per_example["clean_correct"])
  return found


def corruption_accuracies(suite: suites.Suite, per_example: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Accuracies on a suite's common corruptions, over all images, right when clean or not; empty if it has none.

  Returns:
    {"mean" over the kinds' means, "kinds": {kind: {"mean", "severities": {"1": accuracy, ...}}}}.
  """
  kinds: dict[str, dict[str, float]] = {}
  for name, entry in suite.items():
    if attack_entries.is_corruption(entry):
      right = per_example[f"prediction/{name}"] == per_example["labels"]
      kinds.setdefault(entry["kind"], {})[str(entry["severity"])] = float(np.mean(right))
  if not kinds:
    return {}
  means = {kind: float(np.mean([*by_severity.values()])) for kind, by_severity in kinds.items()}
  return {
    "mean": float(np.mean([*means.values()])),
    "kinds": {kind: {"mean": means[kind], "severities": dict(sorted(kinds[kind].items()))} for kind in kinds},
  }


def summary(
  suite: suites.Suite,
  per_example: Mapping[str, np.ndarray],
  train_attacks: suites.Suite | None,
  references: Mapping[str, float],
) -> dict[str, Any]:
  """The metrics in results.json besides the accuracy under each attack; those that do not apply are left out.

  Args:
    train_attacks: those of the run that trained the model; None if unknown.
    references: the best known accuracies by entry of the suite; other attacks are ignored.

  Returns:
    {"held_out": {"attacks", "mean", "union", "lowest"}, "areas": {name: area}, "corruptions" as in
    `corruption_accuracies`, "competitiveness": {"mean", "lowest", "attacks": {entry: ratio}, "references"}}.
  """
  robust = lambda names: np.stack([per_example[f"robust/{name}"] for name in names])
  found: dict[str, Any] = {}
  trained = None if train_attacks is None else suites.trained_on(suite, train_attacks)
  if trained is not None and (names := suites.held_out(suite, trained)):
    held = robust(names)
    means = {"mean": float(mean(held).mean()), "union": float(union(held).mean()), "lowest": lowest(held)}
    found["held_out"] = {"attacks": names, **means}
  if by_name := {name: float(shares.mean()) for name, shares in areas(per_example, list(suite)).items()}:
    found["areas"] = by_name
  if accuracies := corruption_accuracies(suite, per_example):
    found["corruptions"] = accuracies
  if best := {name: references[name] for name in suite if name in references}:
    ratios = {name: float(np.mean(per_example[f"robust/{name}"])) / best[name] for name in best}
    shares = competitiveness(robust(best), np.array([*best.values()]))
    found["competitiveness"] = {
      "mean": float(shares.mean()), "lowest": min(ratios.values()), "attacks": ratios, "references": best
    }  # fmt: skip
  return found
