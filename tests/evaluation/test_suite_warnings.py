"""Warnings of a suite: an accuracy that is too high because stronger attacks were not run always has a warning."""

import json
from pathlib import Path

import numpy as np
import pytest
from jax.tree_util import Partial

from lrat_jax.attacks import sanity_checks, stages
from lrat_jax.config import attack_entries, default
from lrat_jax.evaluation import suite_warnings
from tests.helpers import make_split

RESULTS = sorted((Path(__file__).parent.parent.parent / "results").glob("*/comparison.json"))


def _lines(suite, reports=()):
  nothing = make_split(4).take(np.arange(0))
  return suite_warnings.warnings(Partial(lambda x: x), nothing, suite, dict(reports))


@pytest.mark.parametrize("names", [["pgd"], ["fgsm", "cw"], ["apgd"]])
def test_without_apgd_t_a_suite_with_a_radius_is_warned_of(names):
  suite = {name: {"name": name, "norm": "linf", "epsilon": "0.1"} for name in names}
  assert [line for line in _lines(suite) if "APGD-T is not among the attacks" in line]
  assert not _lines({"jpeg": {"name": "corruption", "kind": "jpeg_compression", "severity": 3}})
  assert not _lines({"stadv": {"name": "unforeseen", "kind": "stadv", "epsilon": "0.05"}})  # epsilon is not in a norm


def test_the_checks_attack_as_autoattack_does_and_in_linf_where_they_can():
  entry = lambda name, norm: {"name": name, "norm": norm, "epsilon": "0.1"}
  suite = {"l1": entry("autoattack", "l1"), "linf": entry("autoattack", "Linf"), "pgd": entry("pgd", "linf")}
  suite |= {"fog": {"name": "corruption", "kind": "fog", "severity": 1}, "own": {"name": "lpips", "epsilon": "0.5"}}
  assert suite_warnings.in_a_norm(suite, ["l1", "linf"]) == ["linf", "l1", "pgd"]
  assert suite_warnings.in_a_norm(suite, ["l1"]) == ["l1", "linf", "pgd"]
  assert suite_warnings.in_a_norm({"own": suite["own"]}, []) == []


def test_the_checks_take_the_norm_that_an_attack_has_by_default(linear_logits):
  seen = []

  def watched(*arguments, **options):
    seen.append((options["norm"], options["epsilon"]))
    return sanity_checks.Findings(0.0, 1.0)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sanity_checks, "run_sanity_checks", watched)
    suite_warnings.warnings(Partial(linear_logits), make_split(4), {"ead": {"name": "ead", "epsilon": "5"}}, {})
  assert seen == [("l1", 5.0)]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_no_run_on_record_has_an_all_clear_beside_a_number_that_is_too_high(path):
  """If PGD-20 is over 3 points higher than the strongest attack, AutoAttack was run in full, or there is a warning."""
  found = json.loads(path.read_text())
  strongest = attack_entries.AUTOATTACK if attack_entries.AUTOATTACK in found["suite"] else "apgd"
  gaps = {
    f"{name} seed {seed}": shares["pgd20"] - shares[strongest]
    for name, method in found["methods"].items()
    for seed, shares in method["seeds"].items()
    if "pgd20" in shares
  }
  whole = strongest in found["suite"] and attack_entries.is_whole(found["suite"][strongest])
  assert whole or all(found["warnings"].get(run) for run, gap in gaps.items() if gap > 0.03)


@pytest.mark.parametrize("preset", sorted(default.PRESETS))
def test_the_default_suite_has_apgd_t(preset):
  suite = default.default("at", preset).eval.suite.to_dict()
  (entry,) = (entry for entry in suite.values() if attack_entries.is_autoattack(entry))
  planned, _ = stages.stages(entry["version"], entry["norm"], 10, None, {})
  assert "apgd-t" in [stage.name for stage in planned]
