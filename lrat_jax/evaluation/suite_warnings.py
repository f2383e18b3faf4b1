"""Warnings about the result of a suite: the attacks' own warnings, and the checks on a few of its images."""

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lrat_jax import attacks, data
from lrat_jax.attacks import sanity_checks
from lrat_jax.config import suites


def _with_autoattack(findings: sanity_checks.Findings, report: attacks.AutoAttackReport) -> sanity_checks.Findings:
  """The findings with APGD-T's accuracy on the same images, and what Square broke of all."""
  ran = [summary.name for summary in report.per_attack]
  robust = dict(findings.robust)
  if "apgd-t" in ran:
    broken_by = report.broken_by[: findings.num_images]
    robust["apgd_t"] = float(np.mean((broken_by == -1) | (broken_by > report.stages.index("apgd-t"))))
  square = [summary.broken / len(report.robust) for summary in report.per_attack if summary.name == "square"]
  return findings._replace(robust=robust, square_gain=square[0] if square else None)


def prediction_warnings(per_example: Mapping[str, np.ndarray], lost: Mapping[str, int]) -> list[str]:
  """Lines on where the model predicted nothing or had no gradient, and on one that predicts one class alone.

  Args:
    per_example: as of `evaluate.run_suite`, with a prediction of -1 where the logits were not finite.
    lost: by attack, on how many images it ended in NaN.
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
  """The attacks of a suite that have a radius in a norm: first AutoAttack, of which there are reports, and L∞ of each.

  The checks compare attacks with PGD, which has one step size and in L1 one sparsity: it is at its best in L∞.
  """
  balls = {name: suites.ball(entry).lower() for name, entry in suite.items() if "epsilon" in entry}
  names = [name for name, ball in balls.items() if ball in suites.NORMS]
  return sorted(names, key=lambda name: (name not in reports, balls[name] != "linf"))


def warnings(
  logits_fn: Partial, split: data.Split, suite: suites.Suite, reports: Mapping[str, attacks.AutoAttackReport]
) -> list[str]:
  """The lines to read before a robust accuracy is believed; none for a healthy model.

  Args:
    logits_fn: images -> logits, on one device.
    split: the first images of those that were evaluated, to look at; may be none.
    suite: the checks attack with the norm and radius of the first of `in_a_norm`.
    reports: what AutoAttack returned, by its name in the suite.
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
    epsilon=suites.radius(entry),
    norm=entry.get("norm", "linf"),
  )
  if names[0] in reports:
    findings = _with_autoattack(findings, reports[names[0]])
  return lines + sanity_checks.warning_lines(findings)
