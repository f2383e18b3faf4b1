"""Single attacks of a configuration: their kinds, threat models and costs, and what AutoAttack cannot run."""

import pytest

from lrat_jax.config import default as config_lib
from lrat_jax.config import suites
from lrat_jax.config.attack_entries import Cost, ball, changed_stages, cost, kinds, norm, radius, threat

AUTOATTACK = {"name": "autoattack", "epsilon": "8/255"}


def test_attacks_of_one_kind_differ_in_steps_and_radius_alone():
  config = config_lib.default("at", "digits,pgd,cw,pgd_l2,fgsm,kl,msd,suite=full")
  trained = {name: kinds(entry) for name, entry in config.train_attacks.items()}
  evaluated = {name: kinds(entry) for name, entry in config.eval.suite.items()}
  assert trained["pgd"] == trained["fgsm"] == evaluated["pgd20"] == {("ce", "linf")}
  assert trained["cw"] == evaluated["cw20"] == {("cw", "linf")}
  assert trained["pgd_l2"] == evaluated["apgd_l2"] == {("ce", "l2")} and trained["kl"] == {("kl", "linf")}
  assert evaluated["square"] == {("square", "linf")} and evaluated["autoattack"] == set()
  assert evaluated["apgd_l1"] == {("ce", "l1")} not in [trained["pgd"], trained["pgd_l2"]]
  assert trained["msd"] == evaluated["pgd20"] | evaluated["apgd_l2"] | evaluated["apgd_l1"]
  trained_on = lambda *names: suites.trained_on(config.eval.suite, {name: config.train_attacks[name] for name in names})
  assert trained_on("msd") == ["apgd_l1", "apgd_l2", "pgd20"] and trained_on("pgd_l2") == ["apgd_l2"]
  moved = {"name": "unforeseen", "kind": "stadv", "epsilon": 0.05}
  assert kinds(moved) == kinds(moved | {"epsilon": 0.1, "num_steps": 3}) == {("ce", "stadv")}
  assert kinds(moved | {"kind": "elastic"}) != kinds(moved)
  transferred = {"name": "pgd", "epsilon": 0.05, "surrogate": "other.pt"}
  assert kinds(transferred) == set()  # training never uses the gradients of a surrogate
  assert kinds({"name": "pgd", "norm": "Linf"}) == kinds({"name": "pgd"})
  assert kinds({"name": "msd", "radii": {"Linf": 0.1, "l2": 1.0}}) == {("ce", "linf"), ("ce", "l2")}
  fog = {"name": "corruption", "kind": "fog", "severity": 1}
  assert kinds(fog) == kinds(fog | {"severity": 5}) != kinds(fog | {"kind": "frost"})
  assert ball({"name": "lpips", "epsilon": 0.5}) == "lpips"
  assert ball(moved) == "stadv" and ball({"name": "pgd", "norm": "l2"}) == "l2"


def test_the_norm_of_an_attack_is_the_one_it_was_given_or_has_by_default():
  names = {
    "pgd": "linf",
    "square": "linf",
    "ead": "l1",
    "ddn": "l2",
    "carlini_wagner": "l2",
    "spatial": None,
    "msd": None,
  }
  assert {name: norm({"name": name}) for name in names} == names
  assert norm({"name": "fmn", "norm": "L0"}) == "l0" and norm(AUTOATTACK) == "linf"
  assert norm({"name": "mine.attacks:bend"}) is None and norm({"name": "mine.attacks:bend", "epsilon": 0.1}) == "linf"


def test_what_was_trained_on_is_not_held_out():
  suite = {"square": {"name": "square"}, "spatial": {"name": "spatial"}, "fog": {"name": "corruption", "kind": "fog"}}
  assert suites.trained_on(suite, suite) == list(suite)
  assert suites.trained_on(suite, {"other": {"name": "corruption", "kind": "frost"}}) == []


def test_an_attack_in_several_norms_is_told_and_counted():
  entry = config_lib.default("at", "fashion_mnist,msd").train_attacks.msd
  assert threat(entry) == "l1 5, l2 1.5, linf 0.1, 5 steps" and radius(entry) is None
  assert cost(entry) == Cost(gradients=5, queries=15)


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
    changed_stages(AUTOATTACK | entry, (8, 8, 1), 10)


def test_threats_are_told_as_they_were_given():
  pgd = {"name": "pgd", "epsilon": "8/255", "step_size": "2/255", "num_steps": 20}
  assert threat(pgd) == "linf 8/255, 20 steps of 2/255"
  assert threat(AUTOATTACK | {"version": "apgd"}) == "linf 8/255, apgd version"
  assert threat({"name": "corruption", "kind": "fog", "severity": 3}) == "fog, severity 3"
  assert threat({"name": "unforeseen", "kind": "stadv", "epsilon": "0.05", "num_steps": 20}) == "stadv 0.05, 20 steps"
  assert threat(pgd | {"surrogate": "w.pt"}) == "linf 8/255, made on w.pt, 20 steps of 2/255"
  assert threat({"name": "lpips", "epsilon": "0.5", "num_steps": 40}) == "lpips 0.5, 40 steps"
  assert radius(pgd) == 8 / 255 and radius({"name": "spatial"}) is None


@pytest.mark.parametrize(
  ("entry", "expected"),
  [
    ({"name": "fgsm"}, (1, 0)),
    ({"name": "pgd", "num_steps": 10, "num_restarts": 3}, (30, 0)),
    ({"name": "apgd", "num_steps": 100, "num_restarts": 2}, (202, 0)),
    ({"name": "apgd", "norm": "l1", "num_steps": 100, "num_restarts": 2}, (206, 0)),
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
    (AUTOATTACK | {"norm": "l1"}, (5 * 103 + 3 * 103 + 3 * 100, 5000)),
  ],
)
def test_costs_of_an_image(entry, expected):
  assert cost(entry, num_classes=4) == expected


def test_an_attack_of_ones_own_is_told_by_its_name_and_fields():
  own = {"name": "mine.attacks:bend", "norm": "l2", "epsilon": "1/2", "kind": "soft", "step_size": 0.1, "severity": [2]}
  assert threat(own) == "l2 1/2, kind soft, step_size 0.1, severity [2]"
  assert threat({"name": "mine.attacks:turn", "max_rotation": "far"}) == "max_rotation far"
  assert kinds(own) == kinds(own | {"epsilon": "3"}) == {("mine.attacks:bend", "l2")}
  assert kinds(own) != kinds(own | {"name": "mine.attacks:turn"})
