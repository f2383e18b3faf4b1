"""Warnings about the result of a suite: the attacks' own warnings, and sanity checks on a few of its images."""

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lrat_jax import attacks, data
from lrat_jax.attacks import sanity_checks
from lrat_jax.config import attack_entries, budgets, suites


def _with_autoattack(findings: sanity_checks.Findings, report: attacks.AutoAttackReport) -> sanity_checks.Findings:
  """Adds APGD-T's accuracy on the same images, and the share of all images that Square broke, to the findings."""
  ran = [summary.name for summary in report.per_attack]
  robust = dict(findings.robust)
  if "apgd-t" in ran:
    broken_by = report.broken_by[: findings.num_images]
    robust["apgd_t"] = float(np.mean((broken_by == -1) | (broken_by > report.stages.index("apgd-t"))))
  square = [summary.broken / len(report.robust) for summary in report.per_attack if summary.name == "square"]
  return findings._replace(robust=robust, square_gain=square[0] if square else None)


def prediction_warnings(per_example: Mapping[str, np.ndarray], lost: Mapping[str, int]) -> list[str]:
  """Warnings if logits or gradients are not finite, or if a constant prediction would be as accurate on clean images.

  Args:
    per_example: as in `evaluate.run_suite`, with a prediction of -1 if the logits were not finite.
    lost: attack -> the number of images on which it ended in NaN.
  """
  lines = []
  if np.mean(per_example["clean_correct"]) <= np.bincount(per_example["labels"]).max() / len(per_example["labels"]):
    lines.append("one prediction for all clean images would be right as often: does the model take images in [0, 1]?")
  for name, count in lost.items():
    if silent := int(np.sum(per_example[f"prediction/{name}"] < 0)):
      lines.append(f"{name}: the logits are NaN or infinite on {silent} attacked images, which count as broken.")
    if count:
      lines.append(
        f"{name} ended in NaN on {count} images, which were evaluated as they are: gradients are not finite."
      )
  return lines


def in_a_norm(suite: suites.Suite, reports: Collection[str]) -> list[str]:
  """The attacks of a suite with a radius in a norm: those with `reports` (AutoAttack) first, then L∞ before others.

  The checks compare attacks with PGD, which has a fixed step size and, in L1, a fixed sparsity: it is strongest in L∞.
  """
  balls = {name: attack_entries.ball(entry) for name, entry in suite.items() if "epsilon" in entry}
  names = [name for name, ball in balls.items() if ball in budgets.NORMS]
  return sorted(names, key=lambda name: (name not in reports, balls[name] != "linf"))


def warnings(
  logits_fn: Partial, split: data.Split, suite: suites.Suite, reports: Mapping[str, attacks.AutoAttackReport]
) -> list[str]:
  """The warnings to read before a robust accuracy is trusted.

  A healthy model causes none, but a suite without AutoAttack, or with only a part of it, does.

  Args:
    logits_fn: images -> logits, on one device.
    split: the first of the evaluated images, for the checks; may be empty.
    suite: the evaluated suite; the checks attack with the norm and radius of the first attack of `in_a_norm`.
    reports: AutoAttack's reports, by name in the suite.
  """
  lines = [f"{name}: {line}" for name, report in reports.items() for line in report.warnings]
  names = in_a_norm(suite, reports)
  if names and not any("apgd-t" in report.stages for report in reports.values()):
    lines.append("APGD-T is not among the attacks, nor AutoAttack: robust accuracies may be many points too high.")
  if not names or not len(split.labels):
    return lines
  entry = suite[names[0]]
  findings = sanity_checks.run_sanity_checks(
    attacks.example_keys(jax.random.key(0), jnp.asarray(split.indices)),
    logits_fn,
    data.to_float(jnp.asarray(split.images)),
    jnp.asarray(split.labels),
    epsilon=attack_entries.radius(entry),
    norm=attack_entries.ball(entry),
  )
  if names[0] in reports:
    findings = _with_autoattack(findings, reports[names[0]])
  return lines + sanity_checks.warning_lines(findings)
