"""The methods of a comparison: their names, the commands that run them, and which results belong to them."""

import json
from pathlib import Path

import pytest

from lrat_jax.compare import methods
from lrat_jax.core import provenance
from lrat_jax.core.errors import ConfigError
from lrat_jax.training import workdir

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)


def _plan(*names, seeds=(0,), overrides=()):
  return methods.plan(
    [methods.parse(name) for name in names], seeds, data="digits", suite="pgd", overrides=overrides, workdir=Path("w")
  )


def test_a_name_says_file_attacks_and_fields():
  method = methods.parse("lrat:pgd+cw@local_weights.slope=4.0@train.ema_decay=0.9")
  assert method.config == "lrat" and method.attacks == ("pgd", "cw")
  assert method.fields == (("local_weights.slope", "4.0"), ("train.ema_decay", "0.9"))
  assert method.folder == "lrat_pgd+cw_local_weights.slope_4.0_train.ema_decay_0.9"
  assert methods.parse(f"{ROOT}/configs/at.py").config == f"{ROOT}/configs/at.py"


def test_a_method_may_name_functions_of_ones_own():
  method = methods.parse("at:pgd@model.name=tests.user_functions:linear@train.epochs=3")
  assert method.attacks == ("pgd",)
  assert method.fields == (("model.name", "tests.user_functions:linear"), ("train.epochs", "3"))
  assert methods.parse("at@model.name=a.b:c").fields == (("model.name", "a.b:c"),)
  at, mine = _plan("at", "lrat@local_weights.kind=tests.user_functions:even", seeds=(1,))
  assert at.config.local_weights.kind == "none" and mine.config.local_weights.kind == "tests.user_functions:even"
  assert mine.workdir == Path("w/lrat_local_weights.kind_tests.user_functions_even/seed1")
  with pytest.raises(ConfigError, match=r"at@model.name=no.such:f: config.model.name='no.such:f': module 'no.such'"):
    _plan("at@model.name=no.such:f")


@pytest.mark.parametrize(
  "name, reason",
  [
    ("lart", r"'lart' is not a method, and the file configs/lart.py does not exist; choose from \['at', 'irat'"),
    ("at@seed", r"'at@seed' is not understood; write NAME"),
    ("", "'' is not understood"),
  ],
)
def test_a_wrong_name_is_named(name, reason):
  with pytest.raises(ConfigError, match=reason):
    methods.parse(name)


def test_runs_go_seed_by_seed_with_the_arms_own_fields_last():
  runs = _plan("at", "lrat:pgd+cw@beta=2.0", seeds=(3, 4), overrides=["--config.beta=1.0", "--config.train.epochs=7"])
  assert [run.name for run in runs] == [
    f"{method} seed {s}" for s in (3, 4) for method in ("at", "lrat:pgd+cw@beta=2.0")
  ]
  at, lrat = runs[:2]
  assert (at.config.beta, lrat.config.beta, at.config.train.epochs) == (1.0, 2.0, 7)
  assert lrat.config.seed == 3 and set(lrat.config.train_attacks) == {"pgd", "cw"}
  assert len({run.workdir for run in runs}) == 4
  assert lrat.command == (
    "python -m lrat_jax.main --config=lrat:digits,pgd,cw,suite=pgd --config.beta=1.0 "
    "--config.train.epochs=7 --config.beta=2.0 --config.seed=3 --workdir=w/lrat_pgd+cw_beta_2.0/seed3"
  )


@pytest.mark.parametrize(
  "name, reason", [("at:pgd+x", "training attack 'x'"), ("at@beta=-1.0", "beta=-1.0 is outside")]
)
def test_what_no_run_can_use_is_refused_before_any_run(name, reason):
  with pytest.raises(ConfigError, match=f"{name.replace('+', '.')}: .*{reason}"):
    _plan("at", name)


def test_results_count_only_for_their_own_configuration(tmp_path):
  (run,) = methods.plan([methods.parse("at")], [0], data="digits", suite="pgd", overrides=[], workdir=tmp_path)
  assert run.results() is None
  run.workdir.mkdir(parents=True)
  file = run.workdir / "results.json"
  measured = provenance.stamp() | {"clean": 0.5, "union": 0.25, "n": 4, "warnings": []}
  file.write_text("{")
  assert run.results() is None
  file.write_text(json.dumps({"config": workdir.portable(run.config), **measured}))
  assert run.results()["clean"] == 0.5
  more = ["--config.eval.num_images=5"]
  (other,) = methods.plan([methods.parse("at")], [0], data="digits", suite="pgd", overrides=more, workdir=tmp_path)
  assert other.workdir == run.workdir and other.results() is None
