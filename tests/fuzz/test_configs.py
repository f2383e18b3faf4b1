"""Extreme configurations: each is refused in one line that names the field, or a run can be built from it."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from lrat_jax import models
from lrat_jax.config import command_line, validate
from lrat_jax.config import default as config_lib
from lrat_jax.core.errors import ConfigError
from lrat_jax.training import optim
from tests.helpers import make_config

CONFIGS = Path(__file__).parent.parent.parent / "configs"
BASE = f"--config={CONFIGS}/lrat_irat.py:digits,suite=apgd"
SHAPE = (8, 8, 1)

NUMBERS = [0, 1, -1, 2, 0.5, -0.5, 1e-300, 1e300, math.nan, math.inf, 2**31, 2**63, 10**24]
TEXTS = [
  "",
  " ",
  "8/0",
  "8//255",
  "8/",
  "/255",
  "1e999",
  "1e400000000",
  "nan/2",
  "True",
  "None",
  "()",
  "(nan,)",
  "('a',)",
]
TEXTS += [
  "(0.5, 0.5)",
  "[1",
  "{}",
  "..",
  "../x",
  "é☃",
  "a\nb",
  "\0",
  "x" * 300,
  "cnn_99999999999",
  "wide_resnet_99999994_1",
]


def leaves(config, prefix=""):
  """The path of every field, such as "train.epochs"."""
  for name in sorted(config):
    yield from leaves(config[name], f"{prefix}{name}.") if isinstance(config[name], ConfigDict) else [prefix + name]


FIELDS = sorted(leaves(config_lib.default("fuzz", "digits,suite=apgd")))
values = st.sampled_from([*map(str, NUMBERS), *TEXTS]) | st.floats().map(repr) | st.integers().map(str) | st.text()


def outcome(*arguments):
  """The configuration that the program would run, or the error that it would print."""
  try:
    config = command_line.parse(arguments).config
    validate.check(config)
    validate.check_for_devices(config, 1)
    validate.check_for_data(config, SHAPE, 10, 1100)
  except ConfigError as error:
    return str(error)
  return config


def assert_can_be_built(config):
  """Asserts that everything in a configuration that is cheap to build can be built."""
  total_steps = config.train.epochs * (1100 // config.data.batch_size)
  rates = optim.schedule(config.optimizer, total_steps)
  assert all(np.isfinite(rates(step)) for step in (0, total_steps // 2, total_steps - 1))
  fields = {field: config.model[field] for field in models.OPTIONS}
  model = models.create(config.model.name, 10, **fields)
  jax.eval_shape(model.init, jax.random.key(config.seed), jax.ShapeDtypeStruct((1, *SHAPE), np.float32))
  assert all(np.float32(deviation) > 0 for deviation in config.model.std)
  assert all(np.isfinite(value) for name in leaves(config) if isinstance(value := _field(config, name), float))


def _field(config, path):
  for name in path.split("."):
    config = config[name]
  return config


@settings(max_examples=40)
@given(st.sampled_from(FIELDS), values)
@example("beta", "inf")
@example("data.crop_padding", "999999999")
@example("eval.batch_size", "999999999999")
@example("eval.suite.apgd.epsilon", "1e400000000")
@example("local_weights.bias", "nan")
@example("model.mean", "(nan,)")
@example("model.name", "wide_resnet_99999994_1")
@example("model.std", "('a',)")
@example("model.std", "(1e-300,)")
@example("name", "../../x")
@example("optimizer.boundary_fractions", "(0.5, 0.5)")
@example("optimizer.boundary_fractions", "('a',)")
@example("optimizer.warmup", "0")
@example("optimizer.warmup", "1")
@example("train.epochs", "999999999")
@example("train_attacks.pgd.epsilon", "1e-400000000")
@example("train_attacks.pgd.num_steps", "99999999999")
@example("compilation_cache", "")
@example("compilation_cache", "a\0b")
def test_a_value_is_refused_by_its_fields_name_or_serves(field, value):
  result = outcome(BASE, f"--config.{field}={value}")
  if not isinstance(result, str):
    assert_can_be_built(result)
    return
  assert len(result.splitlines()) == 1
  assert f"config.{field}" in result or f"config.{field.rpartition('.')[0]}." in result


@given(st.lists(st.text(min_size=1) | st.sampled_from(["train", "eval", "epochs", "suite", "name", "0"]), min_size=1))
@example(["train", ""])
@example(["train", "epochs", "x"])
@example(["a\nb"])
def test_a_key_that_is_no_field_is_named(keys):
  path = ".".join(keys)
  if path.partition("=")[0] not in FIELDS:
    result = outcome(BASE, f"--config.{path}=1")
    assert isinstance(result, str) and len(result.splitlines()) == 1 and "config" in result


names = st.sampled_from(["digits", "cifar10", "pgd", "kl", "fgsm", "suite=pgd", "suite=autoattack", "suite=", "", " "])


@given(st.lists(names | st.text()).map(",".join))
@example("digits,pgd,,cw")
@example("digits,suite=pgd,suite=apgd")
@example("digits,pgd,pgd")
@example(":digits")
def test_what_stands_behind_the_colon_is_refused_or_serves(argument):
  try:
    config = command_line.parse([f"--config={CONFIGS}/lrat.py:{argument}"]).config
  except ConfigError as error:
    assert len(str(error).splitlines()) == 1
    return
  validate.check_form(config)
  assert config.train_attacks and config.eval.suite


words = st.sampled_from(
  ["-", BASE, "--config", "--config=", "--config=.", "--config=configs", "--mode", "--mode=", "--model=", "--workdir",
   "--config.seed", "--config.seed=1", "--config.seed=x", "-config.seed=1", "--noconfig.data.flip", "--help=x"]
)  # fmt: skip


@given(st.lists(words | st.text()))
@example([BASE, "--config"])
@example([BASE, "--config.seed=1", "--config.seed=1"])
@example([BASE, "--workdir=a\0b"])
def test_any_words_are_understood_or_refused_in_one_line(arguments):
  try:
    command_line.parse(arguments)
  except ConfigError as error:
    assert len(str(error).splitlines()) == 1


@given(st.sampled_from([*FIELDS, "train", "eval.suite", "eval.suite.autoattack", "train_attacks"]), st.data())
def test_a_file_that_leaves_out_a_field_or_gives_another_type_is_refused(field, drawn):
  config = make_config("digits,suite=apgd")
  *parents, name = field.split(".")
  group = _field(config, ".".join(parents)) if parents else config
  wrong = drawn.draw(st.sampled_from(["absent", None, "text", 3, 2.5, [], {}, True, b"", [1], ["a"], lambda: 0]))
  with config.unlocked(), config.ignore_type():
    group.__delattr__(name) if wrong == "absent" else group.__setattr__(name, wrong)
  try:
    validate.check_form(config)
    validate.check(config)
  except ConfigError as error:
    assert len(str(error).splitlines()) == 1 and f"config.{parents[0] if parents else name}" in str(error)
    return
  of_attack = parents[:2] == ["eval", "suite"] or parents[:1] in (["train_attacks"], ["validation_attack"])
  assert wrong not in ("absent", None, b"") or of_attack  # fields of attacks have defaults


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("def get_config(:", "--config: the file failed with SyntaxError"),
    ("raise RuntimeError('one\\ntwo')", "--config: the file failed with RuntimeError: two"),
    ("def get_config(arg=None): raise KeyError('k')", "--config: the file failed with KeyError: 'k'"),
    ("def get_config(arg=None): return {'name': 'x'}", "--config: the file returns dict, not a ConfigDict"),
    ("from ml_collections import ConfigDict\ndef get_config(arg=None): return ConfigDict()", "config.awp is missing"),
  ],
)
def test_a_file_that_makes_no_configuration_is_one_line(tmp_path, text, message):
  (tmp_path / "mine.py").write_text(text)
  with pytest.raises(ConfigError) as refusal:
    command_line.parse([f"--config={tmp_path}/mine.py"])
  assert message in str(refusal.value) and len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("path", ["config.name", "config.eval.suite", "config.train_attacks"])
@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", "..", "a\nb", "x" * 300])
def test_no_name_leads_out_of_the_workdir(path, name):
  config = make_config()
  if path == "config.name":
    config.name = name
  else:
    group = config.eval.suite if path == "config.eval.suite" else config.train_attacks
    with config.unlocked(), ConfigDict(group, allow_dotted_keys=True).unlocked():
      group._fields[name] = config.validation_attack  # ConfigDict does not refuse such names everywhere
  with pytest.raises(ConfigError, match=f"{path}.*letters, digits") as refusal:
    validate.check_form(config)
  assert len(str(refusal.value).splitlines()) == 1
