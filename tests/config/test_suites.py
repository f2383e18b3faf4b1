"""Suites: every suite can run on every preset, and an error names what cannot run."""

import re
from pathlib import Path

import numpy as np
import pytest

from lrat_jax.attacks import latents
from lrat_jax.config import default as config_lib
from lrat_jax.config import methods, suites, validate
from lrat_jax.core.errors import ConfigError
from tests.helpers import SHAPES

AUTOATTACK = {"name": "autoattack", "epsilon": "8/255"}


@pytest.mark.slow
@pytest.mark.parametrize("suite", sorted(suites.SUITES))
@pytest.mark.parametrize("preset", sorted(config_lib.PRESETS))
def test_every_suite_makes_sense_on_every_data_set(suite, preset):
  config = config_lib.default("at", f"{preset},suite={suite}")
  shape = SHAPES.get(preset, (32, 32, 3))
  validate.check(config)
  validate.check_for_data(config, shape, 10, 50_000)
  radius = suites.radius(config.train_attacks.pgd)
  linf = [suites.radius(e) for e in config.eval.suite.values() if e.get("norm") == "linf"]
  assert (linf and radius in linf) or suite in ("corruptions", "lpips")  # these have no linf radius
  assert set(linf) <= {radius} or suite == "multirobustbench"
  assert all(suites.threat(entry) for entry in config.eval.suite.values())
  assert config.name == f"at_{preset}"  # the suite does not change the name of the run


def test_what_is_in_the_suites():
  names = {name: set(config_lib.default("at", f"digits,suite={name}").eval.suite) for name in suites.SUITES}
  assert names["apgd"] == set(config_lib.default("at", "digits").eval.suite) == {"pgd20", "cw20", "apgd"}
  assert names["pgd"] == {"fgsm", "pgd20", "cw20"} and names["full"] - {"autoattack"} == names["full_apgd"] - {"apgd"}
  assert names["autoattack"] == {"autoattack"}
  assert names["union"] == {"apgd_linf", "apgd_l2", "apgd_l1"}
  assert names["autoattack_union"] == {"autoattack_linf", "autoattack_l2", "autoattack_l1"}
  assert len(names["corruptions"]) == 75 and {"fog@1", "fog@5", "jpeg_compression@3"} < names["corruptions"]
  assert {"autoattack", "carlini_wagner", "apgd_l2", "apgd_l1", "spatial", "contrast"} < names["unforeseen"]
  assert set(latents.KINDS) < names["unforeseen"]
  families = ("apgd_linf", "apgd_l2", "apgd_l1", "stadv", "elastic", "recolor", "jpeg_linf", "jpeg_l1")
  assert names["lpips"] == {"lpips@1", "lpips@2", "lpips@3"} and names["transfer"] == {"transfer"}
  assert names["multirobustbench"] == {f"{name}@{level}" for name in families for level in range(1, 6)}


@pytest.mark.parametrize("preset", sorted(config_lib.PRESETS))
def test_strengths_of_a_ladder_rise_evenly(preset):
  suite = config_lib.default("at", f"{preset},suite=multirobustbench").eval.suite
  for name in {name.partition("@")[0] for name in suite}:
    radii = [suites.radius(suite[f"{name}@{level}"]) for level in range(1, 6)]
    np.testing.assert_allclose(radii, radii[0] * np.arange(1, 6), rtol=1e-5)
  assert suites.radius(suite["apgd_linf@2"]) == suites.radius(config_lib.default("at", preset).train_attacks.pgd)


def test_attacks_of_one_kind_differ_in_steps_and_radius_alone():
  config = config_lib.default("at", "digits,pgd,cw,pgd_l2,fgsm,kl,msd,suite=full")
  kinds = {name: suites.kinds(entry) for name, entry in config.train_attacks.items()}
  evaluated = {name: suites.kinds(entry) for name, entry in config.eval.suite.items()}
  assert kinds["pgd"] == kinds["fgsm"] == evaluated["pgd20"] == {("ce", "linf")}
  assert kinds["cw"] == evaluated["cw20"] == {("cw", "linf")}
  assert kinds["pgd_l2"] == evaluated["apgd_l2"] == {("ce", "l2")} and kinds["kl"] == {("kl", "linf")}
  assert not any(evaluated[name] for name in ("square", "spatial", "autoattack"))
  assert evaluated["apgd_l1"] == {("ce", "l1")} not in [kinds["pgd"], kinds["pgd_l2"]]
  assert kinds["msd"] == evaluated["pgd20"] | evaluated["apgd_l2"] | evaluated["apgd_l1"]
  trained_on = lambda *names: suites.trained_on(config.eval.suite, {name: config.train_attacks[name] for name in names})
  assert trained_on("msd") == ["apgd_l1", "apgd_l2", "pgd20"] and trained_on("pgd_l2") == ["apgd_l2"]
  moved = {"name": "unforeseen", "kind": "stadv", "epsilon": 0.05}
  assert suites.kinds(moved) == suites.kinds(moved | {"epsilon": 0.1, "num_steps": 3}) == {("ce", "stadv")}
  assert suites.kinds(moved | {"kind": "elastic"}) != suites.kinds(moved)
  transferred = {"name": "pgd", "epsilon": 0.05, "surrogate": "other.pt"}
  assert suites.kinds(transferred) == set()  # training never uses the gradients of a surrogate
  assert suites.ball({"name": "lpips", "epsilon": 0.5}) == "lpips"
  assert suites.ball(moved) == "stadv" and suites.ball({"name": "pgd", "norm": "l2"}) == "l2"


def test_an_attack_in_several_norms_is_told_and_counted():
  entry = config_lib.default("at", "fashion_mnist,msd").train_attacks.msd
  assert suites.threat(entry) == "l1 5, l2 1.5, linf 0.1, 5 steps" and suites.radius(entry) is None
  assert suites.cost(entry) == suites.Cost(gradients=5, queries=15)


@pytest.mark.parametrize("argument", ["digits,suite=all", "digits,suite=apgd,suite=pgd", "digits,suite="])
def test_a_wrong_suite_is_named(argument):
  with pytest.raises(ValueError, match=r"suite '.*' is unknown in the config's argument .* choose one from \['apgd'"):
    config_lib.default("at", argument)


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    ({"steps": 3}, "steps=3 is not an argument of 'autoattack'; choose from"),
    ({"version": "rand"}, r"version='rand' is unknown; choose from \['apgd', 'plus', 'standard'\]"),
    ({"epsilon": "eight"}, "epsilon='eight' is not a number"),
    ({"epsilon": "2"}, r"epsilon=2 is outside \[0, 1\]"),
    ({"norm": "l0"}, "norm='l0' is unknown"),
    ({"attacks_to_run": ("pgd",)}, "has no stage 'pgd'"),
    ({"overrides": {"square": {"steps": 1}}}, "steps=1 is not an argument of 'square'"),
  ],
)
def test_an_autoattack_that_cannot_run_is_named(entry, message):
  with pytest.raises(ValueError, match=message):
    suites.changed_stages(AUTOATTACK | entry, (8, 8, 1), 10)


@pytest.mark.parametrize(
  ("argument", "field", "value", "message"),
  [
    ("digits,suite=apgd", "eval.suite.apgd.epsilon", "3", r"config.eval.suite.apgd.epsilon=3 is outside"),
    ("digits,suite=lpips", "eval.suite.lpips@1.epsilon", "-1", r"config.eval.suite.lpips@1.epsilon=-1 is outside"),
    ("digits", "eval.num_images", -1, "config.eval.num_images=-1 is outside"),
    ("digits", "eval.num_sanity_examples", -1, "config.eval.num_sanity_examples=-1 is outside"),
    ("digits", "eval.robustbench", True, "config.eval.robustbench=True needs AutoAttack's full standard version"),
  ],
)
def test_fields_of_evaluation_are_checked(argument, field, value, message):
  config = config_lib.default("at", argument)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ConfigError, match=message):
    validate.check(config)


@pytest.mark.parametrize("fields", [{"version": "apgd"}, {"attacks_to_run": ["apgd-ce"]}])
def test_what_is_called_autoattack_runs_all_four_attacks(fields):
  config = config_lib.default("at", "digits,suite=full")
  with config.unlocked():
    config.eval.suite.autoattack.update(fields)
  with pytest.raises(
    ConfigError, match=r"config.eval.suite.autoattack does not run all four attacks .* suite=full_apgd"
  ):
    validate.check(config)


def test_threats_are_told_as_they_were_given():
  pgd = {"name": "pgd", "epsilon": "8/255", "step_size": "2/255", "num_steps": 20}
  assert suites.threat(pgd) == "linf 8/255, 20 steps of 2/255"
  assert suites.threat(AUTOATTACK | {"version": "apgd"}) == "linf 8/255, apgd version"
  assert suites.threat({"name": "corruption", "kind": "fog", "severity": 3}) == "fog, severity 3"
  assert (
    suites.threat({"name": "unforeseen", "kind": "stadv", "epsilon": "0.05", "num_steps": 20}) == "stadv 0.05, 20 steps"
  )
  assert suites.threat(pgd | {"surrogate": "w.pt"}) == "linf 8/255, made on w.pt, 20 steps of 2/255"
  assert suites.threat({"name": "lpips", "epsilon": "0.5", "num_steps": 40}) == "lpips 0.5, 40 steps"
  assert suites.radius(pgd) == 8 / 255 and suites.radius({"name": "spatial"}) is None


def test_what_an_attack_costs_is_what_the_documentation_says():
  table = (Path(__file__).parent.parent.parent / "docs/evaluate.md").read_text()
  for name in suites.SUITES:
    entries = config_lib.default("at", f"digits,suite={name}").eval.suite.values()
    costs = [suites.cost(entry) for entry in entries]
    gradients, queries = sum(c.gradients for c in costs), sum(c.queries for c in costs)
    said = f"{gradients:,}" + (f", and {queries:,} queries" if queries else "")
    assert re.search(rf"^\| `{name}` \|.*\| {said} \|$", table, re.MULTILINE), (name, said)


@pytest.mark.parametrize(
  ("entry", "cost"),
  [
    ({"name": "fgsm"}, (1, 0)),
    ({"name": "pgd", "num_steps": 10, "num_restarts": 3}, (30, 0)),
    ({"name": "apgd", "num_steps": 100, "num_restarts": 2}, (202, 0)),
    ({"name": "fab", "num_steps": 10}, (40, 0)),
    ({"name": "carlini_wagner", "num_steps": 50, "binary_search_steps": 3}, (150, 0)),
    ({"name": "ddn"}, (100, 0)),
    ({"name": "fmn", "num_steps": 30}, (30, 0)),
    ({"name": "deepfool", "num_steps": 10}, (30, 0)),
    ({"name": "deepfool", "num_steps": 10, "candidates": 2}, (10, 0)),
    ({"name": "ead", "num_steps": 50, "binary_search_steps": 3}, (150, 150)),
    ({"name": "hop_skip_jump", "num_steps": 3, "initial_num_evals": 100, "max_num_evals": 150}, (0, 100 + 141 + 150)),
    ({"name": "spsa", "num_steps": 10, "num_samples": 64}, (0, 1290)),
    ({"name": "square"}, (0, 5000)),
    ({"name": "lpips", "num_steps": 10, "num_rounds": 3}, (30, 30)),
    ({"name": "spatial", "num_rotations": 3, "num_translations": 2}, (0, 12)),
    ({"name": "corruption", "kind": "jpeg_compression"}, (0, 0)),
    ({"name": "unforeseen", "kind": "stadv", "num_restarts": 2}, (40, 0)),
    (AUTOATTACK, (101 + 3 * 101 + 3 * 100, 5000)),
  ],
)
def test_costs_of_an_image(entry, cost):
  assert suites.cost(entry, num_classes=4) == cost


def test_a_stage_whose_arguments_are_changed_is_checked_with_them():
  config = config_lib.default("at", "digits,suite=autoattack")
  entry = config.eval.suite.autoattack
  for queries, steps in ((10, 5), (-3, 5), (10, "many")):
    with entry.unlocked(), entry.ignore_type():
      entry.overrides = {"square": {"num_queries": queries}, "apgd-t": {"num_steps": steps}}
    if (queries, steps) == (10, 5):
      validate.check(config)
      continue
    with pytest.raises(ConfigError, match="config.eval.suite.autoattack.num_.*must be an integer"):
      validate.check(config)


def test_an_attack_of_ones_own_is_told_by_its_name_and_fields():
  own = {"name": "mine.attacks:bend", "norm": "l2", "epsilon": "1/2", "kind": "soft", "step_size": 0.1, "severity": [2]}
  assert suites.threat(own) == "l2 1/2, kind soft, step_size 0.1, severity [2]"
  assert suites.threat({"name": "mine.attacks:turn", "max_rotation": "far"}) == "max_rotation far"
  assert suites.kinds(own) == suites.kinds(own | {"epsilon": "3"}) == {("mine.attacks:bend", "l2")}
  assert suites.kinds(own) != suites.kinds(own | {"name": "mine.attacks:turn"})


@pytest.mark.parametrize("preset", ["irat:cifar10,pgd,suite=pgd", "configs/irat.py:cifar10,pgd,cw"])
def test_a_run_of_a_method_finds_any_suite_with_its_own_radii(preset):
  found = methods.of_run(preset, "unforeseen").eval.suite.to_dict()
  assert found == suites.SUITES["unforeseen"](config_lib.PRESETS["cifar10"]["budget"])
  assert methods.of_run(preset).global_weights.kind == "gairat"


@pytest.mark.parametrize("preset", ["elsewhere/irat.py:cifar10", "own:cifar10", "irat:no_such_data", ""])
def test_a_run_of_a_users_file_has_no_method(preset):
  assert methods.of_run(preset, "unforeseen") is None


def test_held_out_is_what_was_not_trained_on():
  suite = {"pgd": {"name": "pgd"}, "cw": {"name": "cw"}, "square": {"name": "square"}, "aa": AUTOATTACK}
  trained = suites.trained_on(suite, {"fgsm": {"name": "fgsm"}, "square": {"name": "square"}})
  assert trained == ["pgd"] and suites.held_out(suite, trained) == ["cw", "square"]
