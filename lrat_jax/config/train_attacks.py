"""The training attacks that a config's argument can name, and the attack of validation."""

from collections.abc import Iterable, Mapping
from typing import Any

from lrat_jax.config import attack_entries
from lrat_jax.config.budgets import NORMS, Budget, iterated, with_tenths

# The training attacks that "union" stands for: a variant in each of three norms.
UNION = ("pgd", "pgd_l2", "pgd_l1")


def by_name(budget: Budget) -> dict[str, dict[str, Any]]:
  """Every training attack with its fields, within a budget."""
  steps = budget["num_steps"]
  return {
    "pgd": iterated(budget, "linf", steps, name="pgd", loss="ce", random_start="uniform"),
    "cw": iterated(budget, "linf", steps, name="cw", random_start="uniform"),
    "dlr": iterated(budget, "linf", steps, name="pgd", loss="dlr", random_start="uniform"),
    "kl": iterated(budget, "linf", steps, name="pgd", loss="kl", random_start="gaussian"),
    "pgd_l2": iterated(budget, "l2", steps, name="pgd", loss="ce", random_start="uniform"),
    "pgd_l1": iterated(budget, "l1", steps, name="pgd", loss="ce", random_start="uniform"),
    "msd": _msd(budget, NORMS, steps),
    "fgsm": dict(name="fgsm", norm="linf", epsilon=budget["linf"][0], loss="ce"),
  }


def _msd(budget: Budget, norms: Iterable[str], num_steps: int) -> dict[str, Any]:
  """One attack in several norms at once."""
  return dict(
    name="msd",
    radii={norm: budget[norm][0] for norm in norms},
    step_sizes={norm: budget[norm][1] for norm in norms},
    num_steps=num_steps,
    loss="ce",
  )


def expanded(names: Iterable[str]) -> list[str]:
  """The names of training attacks, with "union" replaced by the names that it stands for."""
  return [attack for name in names for attack in (UNION if name == "union" else (name,))]


def validation_attack(budget: Budget, train_attacks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """PGD-10 in L-infinity; if training uses other norms too, MSD with ten steps in all of its norms."""
  norms = {norm for entry in train_attacks.values() for _, norm in attack_entries.kinds(entry)}
  if norms <= {"linf"}:
    return iterated(with_tenths(budget), "linf", 10, name="pgd", loss="ce", random_start="uniform")
  return _msd(budget, sorted(norms), num_steps=10)
