"""The attacks of an evaluation: the suites that a configuration can name, and what holds for a suite as a whole."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from lrat_jax.attacks import corruptions, latents
from lrat_jax.config.attack_entries import AUTOATTACK, is_autoattack, is_whole, kinds
from lrat_jax.config.budgets import NORMS, Budget, iterated, times, with_tenths

Suite = dict[str, dict[str, Any]]

# A few of the noise, blur, weather and digital corruptions, for a suite with one severity of each.
_FEW_CORRUPTIONS = (
  "gaussian_noise",
  "impulse_noise",
  "gaussian_blur",
  "brightness",
  "contrast",
  "pixelate",
  "jpeg_compression",
)
# Radii of LPIPS in hundredths, measured with a model's own features; the paper trains with 0.5.
_LPIPS = (25, 50, 100)


def _autoattack(budget: Budget, version: str, norm: str = "linf") -> dict[str, Any]:
  return dict(name=AUTOATTACK, norm=norm, epsilon=budget[norm][0], version=version)


def _pgd(budget: Budget) -> Suite:
  """A quick evaluation: FGSM, and 20 steps of a tenth of the radius on each of two losses."""
  epsilon = budget["linf"][0]
  fine = with_tenths(budget)
  return {
    "fgsm": dict(name="fgsm", norm="linf", epsilon=epsilon, loss="ce"),
    "pgd20": iterated(fine, "linf", 20, name="pgd", loss="ce", random_start="uniform"),
    "cw20": iterated(fine, "linf", 20, name="cw", random_start="uniform"),
  }


def _other_norms(budget: Budget) -> Suite:
  """Attacks in norms that training does not use by default, and one without a norm."""
  apgd = dict(name="apgd", loss="ce", num_steps=100, num_restarts=1)
  rotation, translation = budget["spatial"]
  return {
    "apgd_l2": dict(apgd, norm="l2", epsilon=budget["l2"][0]),
    "apgd_l1": dict(apgd, norm="l1", epsilon=budget["l1"][0]),
    "spatial": dict(name="spatial", max_rotation=rotation, max_translation=translation),
  }


def _latent(kind: str, strength: float) -> dict[str, Any]:
  return dict(name="unforeseen", kind=kind, epsilon=f"{strength:g}", num_steps=20, loss="ce", num_restarts=1)


def _unforeseen(budget: Budget) -> Suite:
  """AutoAttack, and attacks that are not used in training: in other norms, and without a norm."""
  search = dict(binary_search_steps=6, num_steps=200, learning_rate=0.02, initial_const=0.1)
  return {
    AUTOATTACK: _autoattack(budget, "standard"),
    "carlini_wagner": dict(name="carlini_wagner", norm="l2", epsilon=budget["l2"][0], **search),
    **_other_norms(budget),
    **{kind: _latent(kind, found.strengths[(len(found.strengths) - 1) // 2]) for kind, found in latents.KINDS.items()},
    **{kind: dict(name="corruption", kind=kind, severity=3) for kind in _FEW_CORRUPTIONS},
  }


def _lpips(budget: Budget) -> Suite:
  """Balls of LPIPS, measured with the model's own features; the same for every data set. Names have hundredths."""
  entry = dict(name="lpips", num_steps=40, num_rounds=5)
  return {f"lpips@{radius}": dict(entry, epsilon=f"{radius / 100:g}") for radius in _LPIPS}


def _transfer(budget: Budget) -> Suite:
  """PGD with momentum on another model, which `surrogate` must name, with steps of a tenth of the radius."""
  fine = with_tenths(budget)
  options = dict(random_start="none", gradient_transform="momentum")
  return {"transfer": iterated(fine, "linf", 20, name="pgd", loss="ce", surrogate="", **options)}


def _corruptions(budget: Budget) -> Suite:
  """The fifteen kinds of the mean corruption accuracy, at all severities; the same for every data set."""
  severities = range(1, corruptions.SEVERITIES + 1)
  return {
    f"{kind}@{severity}": dict(name="corruption", kind=kind, severity=severity)
    for kind in corruptions.STANDARD
    for severity in severities
  }


def _multirobustbench(budget: Budget) -> Suite:
  """MultiRobustBench's families, except LPIPS, at five evenly spaced strengths: `NAME@1` to `NAME@5`.

  Norms: from half the preset's radius to two and a half times it. Others: every fourth of the twenty strengths.
  """
  apgd = dict(name="apgd", loss="ce", num_steps=100, num_restarts=1)
  radii = {norm: budget[norm][0] for norm in NORMS}
  ladders = {
    f"apgd_{norm}": [dict(apgd, norm=norm, epsilon=times(radius, level / 2)) for level in range(1, 6)]
    for norm, radius in radii.items()
  }
  for kind in ("stadv", "elastic", "recolor", "jpeg_linf", "jpeg_l1"):
    ladders[kind] = [_latent(kind, strength) for strength in latents.KINDS[kind].strengths[3::4]]
  return {f"{name}@{level}": entry for name, ladder in ladders.items() for level, entry in enumerate(ladder, 1)}


def _apgd(budget: Budget) -> Suite:
  """The default: 20 steps on two losses, and APGD-CE + APGD-T, whose robust accuracy is close to AutoAttack's."""
  pgd = _pgd(budget)
  return {"pgd20": pgd["pgd20"], "cw20": pgd["cw20"], "apgd": _autoattack(budget, "apgd")}


def _full(budget: Budget, name: str = AUTOATTACK, version: str = "standard") -> Suite:
  """The default of `lrat_jax.compare`: PGD, which most training uses, other attacks, and all of AutoAttack."""
  pgd = _pgd(budget)
  square = dict(name="square", norm="linf", epsilon=budget["linf"][0], num_queries=1000)
  return {
    "pgd20": pgd["pgd20"],
    "cw20": pgd["cw20"],
    "square": square,
    **_other_norms(budget),
    name: _autoattack(budget, version),
  }


SUITES: dict[str, Callable[[Budget], Suite]] = {
  "pgd": _pgd,
  "apgd": _apgd,
  "autoattack": lambda budget: {"autoattack": _autoattack(budget, "standard")},
  "unforeseen": _unforeseen,
  "multirobustbench": _multirobustbench,
  "corruptions": _corruptions,
  "lpips": _lpips,
  "transfer": _transfer,
  "union": lambda budget: {f"apgd_{norm}": _autoattack(budget, "apgd", norm) for norm in NORMS},
  "autoattack_union": lambda budget: {f"autoattack_{norm}": _autoattack(budget, "standard", norm) for norm in NORMS},
  "full": _full,
  "full_apgd": functools.partial(_full, name="apgd", version="apgd"),  # if four attacks would take too long
}
DEFAULT = "apgd"


def trained_on(suite: Mapping[str, Mapping[str, Any]], train_attacks: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The attacks of a suite that have the same kind as a training attack."""
  trained = set().union(*map(kinds, train_attacks.values()))
  return [name for name, entry in suite.items() if kinds(entry) & trained]


def held_out(suite: Mapping[str, Mapping[str, Any]], trained: Collection[str]) -> list[str]:
  """The attacks of a suite that are not in `trained`, without AutoAttack, which has attacks of several kinds."""
  return [name for name, entry in suite.items() if name not in trained and not is_autoattack(entry)]


def robustbench_name(suite: Mapping[str, Mapping[str, Any]]) -> str | None:
  """The first entry of a suite that RobustBench accepts: AutoAttack's standard version, complete and unchanged."""
  for name, entry in suite.items():
    standard = is_autoattack(entry) and is_whole(entry) and entry.get("version", "standard") == "standard"
    if standard and not entry.get("overrides"):
      return name
  return None
