"""User-defined functions in a configuration: a wrong one is a one-line error before training begins."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lrat_jax import attacks, data, main, reweighting
from lrat_jax.analysis import inspection
from lrat_jax.config import validate, validate_user_code
from lrat_jax.core import sharding
from lrat_jax.core.errors import ConfigError
from lrat_jax.training import variants
from lrat_jax.training import workdir as workdir_lib
from tests import user_functions
from tests.helpers import make_config

OWN = "tests.user_functions:"
SHAPE = (8, 8, 1)


def _check(config):
  validate.check_form(config)
  validate.check(config)
  validate.check_for_data(config, SHAPE, 4, 1000)


def _config_with_attack(function, **fields):
  config = make_config()
  config.train_attacks.own = {"name": OWN + function, **fields}
  return config


def test_functions_that_serve_pass():
  config = _config_with_attack("noise", share=0.5)
  config.validation_attack = {"name": f"{OWN}noise", "epsilon": "0.1"}
  config.eval.suite.own = {"name": f"{OWN}too_far", "epsilon": "0", "norm": "l2"}
  config.eval.suite.plain = {"name": f"{OWN}from_a_constant"}
  config.local_weights.kind, config.global_weights.kind = f"{OWN}even", f"{OWN}squares"
  config.model.name = f"{OWN}linear"
  config.data.source = f"{OWN}arrays"
  _check(config)
  validate_user_code.check_global(f"{OWN}nothing", 2)
  assert list(validate_user_code.named(config.to_dict())) == [
    f"config.data.source='{OWN}arrays'",
    f"config.eval.suite.own.name='{OWN}too_far'",
    f"config.eval.suite.plain.name='{OWN}from_a_constant'",
    f"config.global_weights.kind='{OWN}squares'",
    f"config.local_weights.kind='{OWN}even'",
    f"config.model.name='{OWN}linear'",
    f"config.train_attacks.own.name='{OWN}noise'",
    f"config.validation_attack.name='{OWN}noise'",
  ]


@pytest.mark.parametrize(
  ("function", "fields", "message"),
  [
    ("missing", {}, r"name='.*:missing': module 'tests.user_functions' has no 'missing'"),
    ("NUMBER", {}, "name='.*:NUMBER' is int, not a function"),
    (
      "three_arguments",
      {},
      r"takes \(keys, images, labels\); it must take \(keys, logits_fn, images, ",
    ),
    ("noise", {"shrae": 0.5}, r".shrae=0.5 is not an argument of '.*:noise'; choose from \['epsilon', 'num_steps'"),
    ("too_far", {}, "[.]epsilon is missing for '.*:too_far'"),
    ("noise", {"epsilon": "8/"}, "[.]epsilon='8/' is not a number"),
    ("noise", {"epsilon": "2"}, r"[.]epsilon=2 is outside \[0, 1\], the range of linf distances"),
    ("noise", {"num_steps": "2"}, "[.]num_steps='2' must be an integer from 0"),
    ("noise", {"share": float("nan")}, "[.]share=nan cannot be stored"),
    ("too_far", {"epsilon": "0.1", "norm": "l0"}, "[.]norm='l0' is unknown; choose from"),
    ("attack_that_fails", {}, r"name='.*attack_that_fails' failed \(RuntimeError: out of order\)"),
    ("images_alone", {}, "returns .*; it must return an AttackResult of arrays"),
    ("flat_images", {}, r"returns images float32 \(3, 64\); they must be float \(3, 8, 8, 1\)"),
    ("no_steps", {}, r"returns surviving_steps float32 \(3,\); they must be integers \(3,\)"),
    ("too_many_steps", {"num_steps": 4}, r"surviving_steps from 5 to 5; they must be in 0..num_steps, here 0..4"),
    ("too_far", {"epsilon": "0.1"}, r"leaves the linf ball of epsilon=0.1: an image is 0.2 away"),
    ("out_of_range", {}, r"returns images from 1.\d+ to 1.\d+; they must be in \[0, 1\]"),
    ("not_a_number", {}, "returns images from nan to nan"),
    ("branches", {"epsilon": "0.1"}, r"failed \(TracerBoolConversionError"),
  ],
)
def test_what_is_no_attack_is_named(function, fields, message):
  with pytest.raises(ConfigError, match=rf"^config.train_attacks.own.*{message}"):
    _check(_config_with_attack(function, **fields))


def test_only_training_ramps_an_attacks_lengths():
  config = make_config()
  config.validation_attack = {"name": f"{OWN}branches", "epsilon": "0.1"}
  config.eval.suite.own = {"name": f"{OWN}branches", "epsilon": "0.1"}
  _check(config)


@pytest.mark.parametrize(
  ("field", "function", "message"),
  [
    ("local_weights.kind", "missing", "has no 'missing'"),
    ("local_weights.kind", "fails", r"failed \(RuntimeError: out of order\)"),
    ("local_weights.kind", "squares", r"failed \(TypeError: squares\(\) "),
    ("local_weights.kind", "too_few", r"returns \(\(3,\), \(3,\)\) for vulnerabilities \(3, 1\)"),
    ("local_weights.kind", "negative", "returns natural weights that are below 0, NaN or infinite"),
    ("global_weights.kind", "fails", r"failed \(RuntimeError: out of order\)"),
    ("global_weights.kind", "one_below", "returns global weights that are below 0, NaN or infinite"),
    ("global_weights.kind", "whole", r"returns \(3, 1\) for 3 pairs; it must return weights \(3,\)"),
    ("model.name", "missing", "has no 'missing'"),
    ("model.name", "no_module", "returns builtin_function_or_method; it must return a flax.linen.Module"),
    ("model.name", "no_classes", r"failed \(TypeError: no_classes\(\) got an unexpected keyword argument"),
    ("model.name", "wide", r"its network returns \(3, 5\) for images \(3, 8, 8, 1\); it must return logits \(3, 4\)"),
    ("model.name", "counts", r"its network has the variables \['counter', 'params'\]"),
    ("model.name", "drops", r"its network failed on images \(8, 8, 1\) \(InvalidRngError"),
  ],
)
def test_what_is_no_weighting_and_no_network_is_named(field, function, message):
  with pytest.raises(ConfigError, match=rf"^config.{field}='tests.user_functions:{function}'.*{message}"):
    _check(make_config(**{field.replace(".", "__"): OWN + function}))


@pytest.mark.parametrize(
  ("function", "message"),
  [
    ("missing", "has no 'missing'"),
    ("fails", r"failed \(RuntimeError: out of order\)"),
    ("train_alone", r"returns \['x_train'\]; it must return a mapping with the arrays \['test_images', "),
    ("no_classes", "returns _Network; it must return a mapping"),
    ("ragged", "returns something that is not an array: .*inhomogeneous"),
    ("objects", "training images have shape|training images are object"),
    ("bright", r"training images are floats from 2 to 2; float images must be in \[0, 1\]"),
  ],
)
def test_what_is_no_data_set_is_named(function, message):
  with pytest.raises(data.DataError, match=rf"^data.source='tests.user_functions:{function}'.*({message})"):
    data.load(OWN + function, validation_size=8)


def test_arrays_of_a_function_are_a_data_set():
  dataset = data.load(f"{OWN}arrays", validation_size=8)
  arrays = user_functions.arrays()
  assert dataset.num_classes == 4 and len(dataset.train.labels) == 24
  np.testing.assert_array_equal(dataset.test.images[..., 0], arrays["x_test"])
  np.testing.assert_array_equal(dataset.test.labels, arrays["y_test"])


def test_lengths_by_default_are_parsed_and_ramped(keys, images, labels, linear_logits):
  attack = attacks.from_config({"name": f"{OWN}noise", "share": 1})
  found = attacks.scaled(attack, 0.5)(keys, linear_logits, images, labels)
  assert jnp.max(jnp.abs(found.images - images)) == pytest.approx(4 / 255, rel=1e-4)
  assert attack.keywords["num_steps"] == 2 and found.surviving_steps.tolist() == [2] * 16
  one_key = attack(jax.random.key(0), linear_logits, images, labels)
  per_image = attack(attacks.example_keys(jax.random.key(0), jnp.arange(16)), linear_logits, images, labels)
  np.testing.assert_array_equal(one_key.images, per_image.images)


def test_surviving_steps_are_shares_of_the_steps_that_an_attack_has_by_default(keys, images, labels, linear_logits):
  config = make_config(train__epsilon_ramp_fraction=1.0)
  config.train_attacks = {"own": {"name": f"{OWN}noise"}}
  made, fractions = variants.attack(
    config, "cpu", jax.random.key(0), jnp.array(0), 4, None, linear_logits, images, labels, jnp.arange(16)
  )
  assert jnp.max(jnp.abs(made[:, 0] - images)) == pytest.approx(2 / 255, rel=1e-4)  # a quarter of 8 / 255
  assert fractions.tolist() == [[1.0]] * 16


@pytest.mark.parametrize(
  "entry", [{"name": "apgd"}, {"name": "square", "num_queries": 4}, {"name": "spatial", "num_rotations": 2}]
)
def test_surviving_steps_of_a_built_in_attack_are_shares_too(entry, keys, images):
  config = make_config()
  config.train_attacks = {"built_in": entry | ({} if entry["name"] == "spatial" else {"epsilon": 0.0})}
  right = lambda images: 1e-6 * images.reshape(len(images), -1)[:, :3] + jnp.array([1.0, 0.0, 0.0])
  _, fractions = variants.attack(
    config, "cpu", jax.random.key(0), jnp.array(0), 4, None, right, images, jnp.zeros(16, int), jnp.arange(16)
  )
  assert fractions.tolist() == [[1.0]] * 16


def test_no_gradient_flows_whatever_a_function_does():
  scores = jnp.linspace(0.2, 0.9, 6).reshape(3, 2)

  def total(scores):
    inside = reweighting.user_local_weights(user_functions.even, scores, total=1.0, minimum_natural=0, slope=1, bias=0)
    across = reweighting.global_weights(
      user_functions.squares, vulnerabilities=scores, surviving_fractions=jnp.zeros_like(scores)
    )
    return jnp.sum(inside[1]) + jnp.sum(across * scores[:, 0])

  value, gradient = jax.value_and_grad(total)(scores)
  weights = np.square(scores[:, 0]) / np.mean(np.square(scores[:, 0]))
  assert value == pytest.approx(float(np.sum(np.square(scores)) / 2 + np.sum(weights * scores[:, 0])), rel=1e-5)
  np.testing.assert_allclose(gradient, np.stack([weights, np.zeros(3)], axis=1), rtol=1e-5)


@pytest.mark.parametrize(("scale", "devices"), [(1e-30, 1), (1.0, 2), (1e30, 8)])
def test_own_global_weights_have_mean_1_on_any_number_of_devices(scale, devices):
  scores = jnp.linspace(-0.9, 0.7, 8).reshape(8, 1)
  raw = lambda vulnerabilities, surviving_fractions: scale * vulnerabilities[:, 0] ** 2
  weigh = lambda scores: reweighting.global_weights(
    raw, vulnerabilities=scores, surviving_fractions=scores, axis_name=sharding.AXIS
  )
  specs = {"in_specs": sharding.BATCHED, "out_specs": sharding.BATCHED}
  weights = jax.jit(jax.shard_map(weigh, mesh=sharding.make_mesh(devices), **specs))(scores)
  np.testing.assert_allclose(weights, np.square(scores[:, 0]) / np.mean(np.square(scores)), rtol=1e-4)


def test_weights_that_are_all_0_weigh_alike_and_one_below_0_is_seen():
  scores = jnp.array([[0.5], [-0.5]])
  arguments = {"vulnerabilities": scores, "surviving_fractions": scores}
  assert reweighting.global_weights(user_functions.nothing, **arguments).tolist() == [1, 1]
  assert np.isnan(reweighting.global_weights(user_functions.one_below, **arguments)).any()
  assert np.isnan(reweighting.user_local_weights(user_functions.negative, scores)[0]).tolist() == [False, True]


ATTACK = {"name": "trap:attack"}
PLACES = {
  "data.source": "trap:arrays",
  "model.name": "trap:network",
  "local_weights.kind": "trap:inside",
  "global_weights.kind": "trap:across",
  "train_attacks": {"pgd": ATTACK},
  "validation_attack": ATTACK,
  "eval.suite": {"own": ATTACK},
}


@pytest.fixture
def trap(tmp_path, monkeypatch):
  """A module that creates a file when it is imported; returns the path of that file."""
  (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w').close()\n")
  monkeypatch.syspath_prepend(tmp_path)
  yield tmp_path / "sprung"
  sys.modules.pop("trap", None)


def _write(workdir, **fields):
  config = make_config().to_dict()
  for path, value in fields.items():
    *groups, name = path.split(".")
    node = config
    for group in groups:
      node = node[group]
    node[name] = value
  workdir.mkdir(exist_ok=True)
  workdir_lib.write_config(workdir, ConfigDict(config), {})


@pytest.mark.parametrize("place", PLACES)
def test_a_workdir_of_anothers_runs_nothing_without_leave(place, trap, tmp_path):
  _write(tmp_path / "run", **{place: PLACES[place]})
  for read in (inspection.evaluate, inspection.load_experiment, workdir_lib.load_config):
    with pytest.raises(
      ValueError, match=rf"config.json refers to user code .*config.{place}.*='trap:.*; pass trust_user_code=True"
    ):
      read(tmp_path / "run")
  assert not trap.exists() and "trap" not in sys.modules


def test_autoattacks_changes_name_no_code_either(trap, tmp_path):
  entry = {"name": "autoattack", "epsilon": "0.1", "overrides": {"apgd-ce": {"name": "trap:attack"}}}
  _write(tmp_path / "run", **{"eval.suite": {"aa": entry}})
  with pytest.raises(ValueError, match="config.eval.suite.aa.overrides.apgd-ce.name='trap:attack'"):
    inspection.load_experiment(tmp_path / "run")
  assert not trap.exists()


def test_with_leave_a_workdirs_code_is_run_and_without_any_none_is_asked(trap, tmp_path):
  _write(tmp_path / "run", **{"model.name": "trap:network"})
  with pytest.raises(ValueError, match="module 'trap' has no 'network'"):
    inspection.load_experiment(tmp_path / "run", trust_user_code=True)
  assert trap.exists()
  _write(tmp_path / "plain", **{"data.source": "npz:data", "compilation_cache": "a:b"})
  assert workdir_lib.load_config(tmp_path / "plain").data.source == "npz:data"


def test_a_name_on_the_command_line_is_one_line(tmp_path, capsys):
  command = ["--config=configs/at.py", f"--workdir={tmp_path}/run"]
  assert main.main([*command, "--config.model.name=nowhere:make"]) == 2
  line = "error: config.model.name='nowhere:make': module 'nowhere' cannot be imported (ModuleNotFoundError: "
  assert capsys.readouterr().err == f"{line}No module named 'nowhere').\n"
  assert main.main([*command, f"--config.data.source={OWN}fails"]) == 2
  assert re.fullmatch("error: config.data.source='.*:fails' failed .*\n", capsys.readouterr().err)
  assert main.main([*command, f"--config.train_attacks.pgd.name={OWN}images_alone"]) == 2
  assert "is not an argument of 'tests.user_functions:images_alone'; choose from []" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


def test_a_function_that_fails_later_is_one_line(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(validate_user_code, "check_local", lambda *_: None)
  command = ["--config=configs/lrat.py", "--config.local_weights.begin_fraction=0.0", "--config.model.name=cnn_2"]
  assert main.main([*command, f"--config.local_weights.kind={OWN}fails", f"--workdir={tmp_path}/run"]) == 2
  assert capsys.readouterr().err == "error: 'tests.user_functions:fails' failed (RuntimeError: out of order).\n"
