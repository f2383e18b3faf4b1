"""Suites: every suite can run on every preset, and an error names what cannot run."""

import re
from pathlib import Path

import numpy as np
import pytest

from lrat_jax.attacks import latents
from lrat_jax.config import attack_entries, methods, suites, validate
from lrat_jax.config import default as config_lib
from lrat_jax.core.errors import ConfigError
from lrat_jax.evaluation import metrics
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
  radius = attack_entries.radius(config.train_attacks.pgd)
  linf = [attack_entries.radius(e) for e in config.eval.suite.values() if e.get("norm") == "linf"]
  assert (linf and radius in linf) or suite in ("corruptions", "lpips")  # these have no linf radius
  assert set(linf) <= {radius} or suite == "multirobustbench"
  assert all(attack_entries.threat(entry) for entry in config.eval.suite.values())
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
  assert names["lpips"] == {"lpips@25", "lpips@50", "lpips@100"} and names["transfer"] == {"transfer"}
  assert names["multirobustbench"] == {f"{name}@{level}" for name in families for level in range(1, 6)}


@pytest.mark.parametrize("preset", sorted(config_lib.PRESETS))
def test_strengths_of_a_ladder_rise_evenly(preset):
  suite = config_lib.default("at", f"{preset},suite=multirobustbench").eval.suite
  for name in {name.partition("@")[0] for name in suite}:
    radii = [attack_entries.radius(suite[f"{name}@{level}"]) for level in range(1, 6)]
    np.testing.assert_allclose(radii, radii[0] * np.arange(1, 6), rtol=1e-5)
  lpips = config_lib.default("at", f"{preset},suite=lpips").eval.suite
  for radius, name in metrics.ladders(list(lpips))["lpips"]:
    assert attack_entries.radius(lpips[name]) == radius / 100  # the area is over radii
  assert attack_entries.radius(suite["apgd_linf@2"]) == attack_entries.radius(
    config_lib.default("at", preset).train_attacks.pgd
  )


@pytest.mark.parametrize("argument", ["digits,suite=all", "digits,suite=apgd,suite=pgd", "digits,suite="])
def test_a_wrong_suite_is_named(argument):
  with pytest.raises(ValueError, match=r"suite '.*' is unknown in the config's argument .* choose one from \['apgd'"):
    config_lib.default("at", argument)


@pytest.mark.parametrize(
  ("argument", "field", "value", "message"),
  [
    ("digits,suite=apgd", "eval.suite.apgd.epsilon", "3", r"config.eval.suite.apgd.epsilon=3 is outside"),
    ("digits,suite=lpips", "eval.suite.lpips@25.epsilon", "-1", r"config.eval.suite.lpips@25.epsilon=-1 is outside"),
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


def test_an_attack_without_a_fixed_number_of_steps_is_not_for_training():
  config = config_lib.default("at", "digits")
  with config.unlocked():
    config.train_attacks = {"jump": {"name": "hop_skip_jump", "epsilon": "0.5"}}
  with pytest.raises(ConfigError, match="config.train_attacks.jump.name='hop_skip_jump' has no fixed number of steps"):
    validate.check_for_data(config, (8, 8, 1), 10, 1000)


@pytest.mark.parametrize("fields", [{"version": "apgd"}, {"attacks_to_run": ["apgd-ce"]}])
def test_what_is_called_autoattack_runs_all_four_attacks(fields):
  config = config_lib.default("at", "digits,suite=full")
  with config.unlocked():
    config.eval.suite.autoattack.update(fields)
  with pytest.raises(
    ConfigError, match=r"config.eval.suite.autoattack does not run all four attacks .* suite=full_apgd"
  ):
    validate.check(config)


def test_what_an_attack_costs_is_what_the_documentation_says():
  table = (Path(__file__).parent.parent.parent / "docs/evaluate.md").read_text()
  for name in suites.SUITES:
    entries = config_lib.default("at", f"digits,suite={name}").eval.suite.values()
    costs = [attack_entries.cost(entry) for entry in entries]
    gradients, queries = sum(c.gradients for c in costs), sum(c.queries for c in costs)
    said = f"{gradients:,}" + (f", and {queries:,} queries" if queries else "")
    assert re.search(rf"^\| `{name}` \|.*\| {said} \|$", table, re.MULTILINE), (name, said)


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
  assert trained == ["pgd", "square"] and suites.held_out(suite, trained) == ["cw"]
