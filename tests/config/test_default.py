"""Every configuration file is valid on every preset; an error names each value that no run can use."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from lrat_jax import data
from lrat_jax.compare import __main__ as compare
from lrat_jax.config import command_line, validate
from lrat_jax.config import default as config_lib
from lrat_jax.convert import __main__ as convert
from lrat_jax.core.errors import ConfigError
from tests.helpers import SHAPES, make_config

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.py"))


def _get_config(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("preset", sorted(config_lib.PRESETS))
def test_every_method_makes_sense_on_every_data_set(path, preset):
  config = _get_config(path)(preset)
  validate.check(config)
  shape = SHAPES.get(preset, (32, 32, 3))
  validate.check_for_data(config, shape, 10, 50_000)
  assert config.name == f"{path.stem}_{preset}"


def test_methods_are_points_on_the_axes():
  axes = {path.stem: _get_config(path)() for path in CONFIGS}
  assert {name: (c.local_weights.kind, c.global_weights.kind, c.objective) for name, c in axes.items()} == {
    "at": ("none", "none", "ce"),
    "irat": ("none", "gairat", "ce"),
    "lrat": ("lrat", "none", "ce"),
    "lrat_irat": ("lrat", "gairat", "ce"),
    "max": ("max", "none", "ce"),
    "softmax": ("softmax", "none", "ce"),
    "eat": ("none", "none", "ce"),
    "trades": ("none", "none", "trades"),
    "mart": ("none", "none", "mart"),
  }
  assert {name: list(c.train_attacks) for name, c in axes.items() if name in ("trades", "mart")} == {
    "trades": ["kl"],
    "mart": ["pgd"],
  }
  assert {name for name, c in axes.items() if list(c.train_attacks) == ["pgd", "pgd_l1", "pgd_l2"]} == {
    "max", "softmax", "eat"
  }  # fmt: skip
  assert [name for name, c in axes.items() if c.train.variants == "sampled"] == ["eat"]


def test_the_argument_chooses_data_and_training_attacks():
  config = config_lib.default("lrat", "cifar10,pgd,cw,kl")
  assert set(config.train_attacks) == {"pgd", "cw", "kl"} and config.data.source == "tfds:cifar10"
  assert config.train_attacks.cw.epsilon == "8/255" and config.name == "lrat_cifar10_pgd_cw_kl"
  assert set(config_lib.default("lrat").train_attacks) == {"pgd"}
  union = config_lib.default("lrat", "digits,union,cw")
  assert set(union.train_attacks) == {"pgd", "pgd_l2", "pgd_l1", "cw"} and union.name == "lrat_digits_union_cw"


def test_every_offered_training_attack_can_be_built():
  names = ["pgd", "cw", "dlr", "kl", "pgd_l2", "pgd_l1", "msd", "fgsm"]
  validate.check(config_lib.default("lrat", ",".join(["digits", *names])))


def _lengths(group, norm):
  """Each epsilon and step size in a norm, among the attacks of a group."""
  entries = [entry for entry in group.values() if entry.get("norm") == norm]
  return {entry.epsilon for entry in entries}, {entry.step_size for entry in entries if "step_size" in entry}


def test_a_radius_in_the_argument_holds_for_training_validation_and_the_suite():
  config = config_lib.default("at", "cifar10,linf=4/255,pgd,cw,suite=full")
  assert _lengths(config.train_attacks, "linf") == ({"4/255"}, {"1/255"})
  assert (config.validation_attack.epsilon, config.validation_attack.step_size) == ("4/255", "0.4/255")
  assert _lengths(config.eval.suite, "linf") == ({"4/255"}, {"0.4/255"})
  usual = config_lib.default("at", "cifar10,pgd,cw,suite=full")
  for norm in ("l2", "l1"):
    assert _lengths(config.eval.suite, norm) == _lengths(usual.eval.suite, norm)
  assert config.name == "at_cifar10_linf4_255_pgd_cw"


def test_several_radii_hold_for_several_norms_at_once():
  config = config_lib.default("at", "fashion_mnist,msd,l2=1,l1=8,suite=autoattack_union")
  assert dict(config.train_attacks.msd.radii) == {"linf": "0.1", "l2": "1", "l1": "8"}
  assert dict(config.train_attacks.msd.step_sizes) == {"linf": "0.035", "l2": "0.333333", "l1": "4"}
  assert dict(config.validation_attack.radii) == dict(config.train_attacks.msd.radii)
  assert {entry.norm: entry.epsilon for entry in config.eval.suite.values()} == dict(config.train_attacks.msd.radii)
  for argument in ("digits,pgd_l2,l2=1", "digits,l2=1,suite=full", "digits,msd,l1=1", "digits,l1=1,suite=unforeseen"):
    config_lib.default("at", argument)  # in training or in the suite is enough


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("cifar10,linf=8/", "'cifar10,linf=8/': linf='8/' is not a number"),
    ("cifar10,linf=", "'cifar10,linf=': linf='' is not a number"),
    ("cifar10,l2=0", "'cifar10,l2=0': l2=0 must be above 0"),
    (
      "cifar10,l2=1",
      "'cifar10,l2=1': l2= has no effect; neither training nor the suite has an attack in l2",
    ),
    ("cifar10,l2=1,l2=2", "'cifar10,l2=1,l2=2' sets a radius twice"),
    ("cifar10,l7=1", "training attack 'l7=1' is unknown .* or set a radius: linf=, l2= or l1="),
  ],
)
def test_a_wrong_radius_in_the_argument_is_named(argument, message):
  with pytest.raises(ValueError, match=message):
    config_lib.default("at", argument)


def test_a_radius_in_the_argument_outside_the_image_range_is_refused():
  with pytest.raises(ConfigError, match=r"epsilon=8 is outside \[0, 1\]"):
    validate.check(config_lib.default("at", "cifar10,linf=8"))


@pytest.mark.parametrize("argument", ["mnist", "digits,pgd,pgd", "digits,fgms", "digits,union,pgd", "digits,suite"])
def test_a_wrong_argument_is_named(argument):
  with pytest.raises(ValueError, match=f"{argument!r}"):
    config_lib.default("at", argument)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("objective", "hinge", r"config.objective='hinge' is unknown; choose from \['ce', 'mart', 'trades'\]"),
    ("beta", -1.0, r"config.beta=-1.0 is outside \[0, 1e\+06\]"),
    ("logit_pairing.weight", -1.0, r"config.logit_pairing.weight=-1.0 is outside \[0, 1e\+06\]"),
    (
      "logit_pairing.weight",
      1.0,
      "config.logit_pairing.weight=1.0 compares the variants of a pair, but there is only one",
    ),
    ("awp.gamma", 2.0, r"config.awp.gamma=2.0 is outside \[0, 1\]"),
    ("awp.begin_fraction", 1.5, r"config.awp.begin_fraction=1.5 is outside \[0, 1\]"),
    ("eval.checkpoint", "newest", r"config.eval.checkpoint='newest' is unknown; choose from \['best', 'last'\]"),
    ("eval.split", "all", r"config.eval.split='all' is unknown; choose from \['test', 'train', 'validation'\]"),
    ("data.train_size", -1, r"config.data.train_size=-1 is outside \[0, 1e\+09\]"),
    ("local_weights.kind", "global", r"choose from \['lrat', 'max', 'none', 'softmax'\]"),
    ("global_weights.kind", "x", r"choose from \['gairat', 'mail', 'none'\]"),
    ("optimizer.schedule", "step", r"choose from \['constant', 'cosine', 'one_cycle', 'piecewise'\]"),
    ("optimizer.name", "adam", r"config.optimizer.name='adam' is unknown; choose from \['adamw', 'sgd'\]"),
    ("optimizer.decay", "none", r"config.optimizer.decay='none' is unknown; choose from \['all', 'kernels'\]"),
    ("optimizer.clip_norm", -1.0, r"config.optimizer.clip_norm=-1.0 is outside \[0, 1e\+06\]"),
    ("model.batch_norm", "global", r"choose from \['local', 'synchronised'\]"),
    ("train.init_head", "old", r"config.train.init_head='old' is unknown; choose from \['loaded', 'new'\]"),
    ("train.variants", "each", r"config.train.variants='each' is unknown; choose from \['all', 'sampled'\]"),
    ("train.attack_batch_norm", "test", r"choose from \['eval', 'train'\]"),
    ("train.epochs", 0, r"config.train.epochs=0 is outside \[1, 1e\+09\]"),
    ("train.ema_decay", 1.0, "config.train.ema_decay=1.0 is outside"),
    ("train.epsilon_ramp_fraction", 1.5, r"config.train.epsilon_ramp_fraction=1.5 is outside \[0, 1\]"),
    ("eval.attack_dtype", "float16", r"config.eval.attack_dtype='float16' is unknown; choose from"),
    ("data.extra.fraction", 1.5, r"config.data.extra.fraction=1.5 is outside \[0, 1\]"),
    ("data.batch_size", -4, "config.data.batch_size=-4 is outside"),
    ("data.cutout", -1, "config.data.cutout=-1 is outside"),
    ("data.mixup", -1.0, r"config.data.mixup=-1.0 is outside \[0.001, 1000\]"),
    ("data.cutmix", 1e-30, r"config.data.cutmix=1e-30 is outside \[0.001, 1000\]"),
    ("data.randaugment.num_ops", 11, r"config.data.randaugment.num_ops=11 is outside \[0, 10\]"),
    ("data.randaugment.magnitude", 31, r"config.data.randaugment.magnitude=31 is outside \[0, 30\]"),
    ("data.idbh", "strong", r"config.data.idbh='strong' is unknown; choose from \['cifar10_strong', 'cifar10_weak', "),
    ("train.label_smoothing", 1.5, r"config.train.label_smoothing=1.5 is outside \[0, 0.99\]"),
    ("local_weights.total", 0.0, r"config.local_weights.total=0.0 is outside \(0, 1e\+06\]"),
    ("local_weights.minimum_natural", 2.0, r"config.local_weights.minimum_natural=2.0 is outside \[0, 1\]"),
    ("local_weights.slope", -1.0, "config.local_weights.slope=-1.0 is outside"),
    ("optimizer.learning_rate", float("nan"), "config.optimizer.learning_rate=nan is outside"),
    ("optimizer.boundary_fractions", (0.7, 0.2), "config.optimizer.boundary_fractions=.* must be increasing shares"),
    ("model.name", "vgg", "config.model.name='vgg' is not a model; choose from"),
    ("model.activation", "swish", r"config.model.activation='swish' is unknown; choose from \['auto', 'relu', 'silu'"),
    ("model.preprocessing", "zca", r"config.model.preprocessing='zca' is unknown; choose from \['mean_std', 'none', "),
    ("model.dtype", "float16", "config.model.dtype='float16' is unknown"),
    ("train_attacks.pgd.epsilon", "-1/255", "config.train_attacks.pgd.epsilon=-0.00392157 is outside"),
    ("train_attacks.pgd.epsilon", "1.5", r"config.train_attacks.pgd.epsilon=1.5 is outside \[0, 1\]"),
    ("train_attacks.pgd.name", "pdg", "config.train_attacks.pgd.name='pdg' is not an attack; choose from"),
    ("train_attacks.pgd.loss", "mse", "config.train_attacks.pgd.loss='mse' is unknown; choose from"),
    ("eval.suite.pgd20.norm", "l0", "config.eval.suite.pgd20.norm='l0' is unknown; choose from"),
    ("validation_attack.num_steps", -1, "config.validation_attack.num_steps=-1 must be an integer"),
    ("seed", -1, "config.seed=-1 is outside"),
    ("mesh.model_devices", 0, r"config.mesh.model_devices=0 is outside \[1, 1e\+09\]"),
    ("mesh.shard_above", -1, r"config.mesh.shard_above=-1 is outside \[0, 1e\+09\]"),
    ("beta", float("inf"), r"config.beta=inf is outside \[0, 1e\+06\]"),
    ("local_weights.bias", float("nan"), "config.local_weights.bias=nan is outside"),
    ("eval.batch_size", 2**21, "config.eval.batch_size=2097152 is outside"),
    ("model.std", (1e-300,), "config.model.mean=.* must have the same length, no value .*, and every std above 0"),
    ("model.name", "cnn_99999", "config.model.name='cnn_99999' is not a model"),
    ("compilation_cache", "", "config.compilation_cache='' must be auto, off or a folder"),
    ("train_attacks.pgd.num_steps", 10**7, "num_steps=10000000 must be an integer from 0 to 1,000,000"),
    ("train_attacks.pgd.epsilon", "8/", "config.train_attacks.pgd.epsilon='8/' is not a number"),
  ],
)
def test_values_that_no_run_can_use_are_named(field, value, message):
  with pytest.raises(ConfigError, match=message):
    validate.check(make_config(**{field.replace(".", "__"): value}))


def test_a_mixture_needs_images_of_both_sources():
  fields = {"data__extra__source": "npz:a.npz", "data__batch_size": 64}
  validate.check(make_config(**fields))
  for fraction in (0.001, 0.999):
    with pytest.raises(
      ConfigError, match=f"config.data.extra.fraction={fraction} of 64 images leaves one source without"
    ):
      validate.check(make_config(**fields, data__extra__fraction=fraction))
  with pytest.raises(ConfigError, match="config.data.extra.source='npz:a.npz' has 44 images, but a batch needs 45"):
    validate.check_for_data(make_config(**fields), (8, 8, 1), 10, 1000, extra=44)


def test_adamws_momentum_is_less_than_one():
  fields = {"optimizer__momentum": 1.0}
  validate.check(make_config(**fields))
  with pytest.raises(ConfigError, match="config.optimizer.momentum=1.0 must be less than 1: AdamW divides"):
    validate.check(make_config(**fields, optimizer__name="adamw"))


def test_what_only_the_data_can_tell():
  config = make_config("digits,pgd_l2")
  validate.check_for_data(config, (8, 8, 1), 10, 1000)
  with pytest.raises(ConfigError, match="config.data.batch_size=64 is more than the 63 training images"):
    validate.check_for_data(config, (8, 8, 1), 10, 63)
  with pytest.raises(ConfigError, match="config.model.mean=.* has 2 entries, but the images have 3 channels"):
    validate.check_for_data(make_config(model__mean=(0.1, 0.2), model__std=(1.0, 1.0)), (8, 8, 3), 10, 1000)
  config.train_attacks.pgd_l2.epsilon = "9"
  validate.check(config)
  with pytest.raises(ConfigError, match=r"config.train_attacks.pgd_l2.epsilon=9 is outside \[0, 8\]"):
    validate.check_for_data(config, (8, 8, 1), 10, 1000)
  for field, value, message in (
    ("data__crop_padding", 9, r"config.data.crop_padding=9 is more than the shorter side of images \(8, 8, 1\)"),
    ("train__epochs", 10**9, "config.train.epochs=1000000000 makes more than 2,147,483,647 steps"),
  ):
    with pytest.raises(ConfigError, match=message):
      validate.check_for_data(make_config(**{field: value}), (8, 8, 1), 10, 1000)
  dlr = make_config("digits,dlr")
  with pytest.raises(ConfigError, match="config.train_attacks.dlr.loss='dlr' needs at least 3 classes"):
    validate.check_for_data(dlr, (8, 8, 1), 2, 1000)


@pytest.mark.parametrize("path", ["train_attacks", "eval.suite"])
def test_attacks_there_must_be(path):
  config = make_config()
  with config.unlocked():
    (config if path == "train_attacks" else config.eval)[path.split(".")[-1]] = {}
  with pytest.raises(ConfigError, match=f"config.{path}=.* must be a group of at least one attack"):
    validate.check_form(config)


def test_idbh_takes_no_other_crops_and_operations_of_colour_no_other_channels():
  with pytest.raises(ConfigError, match="config.data.idbh='svhn' makes its own crops; use data.crop_padding=0 with it"):
    validate.check(make_config(data__idbh="svhn", data__crop_padding=1))
  for field, value in (("data.idbh", "svhn"), ("data.randaugment.num_ops", 2)):
    config = make_config(**{field.replace(".", "__"): value})
    validate.check_for_data(config, (8, 8, 3), 10, 1000)
    with pytest.raises(ConfigError, match=f"config.{field}={value!r} needs images with 1 or 3 channels, not 4"):
      validate.check_for_data(config, (8, 8, 4), 10, 1000)


def test_batches_must_split_over_the_devices():
  config = make_config(data__batch_size=64, eval__batch_size=250)
  validate.check_for_devices(config, 2)
  with pytest.raises(ConfigError, match="config.eval.batch_size=250 is not divisible by the 4 devices in use"):
    validate.check_for_devices(config, 4)


def test_the_home_folder_may_be_written_as_a_tilde(monkeypatch, tmp_path):
  """A shell does not expand a tilde after "=", so the programs must."""
  monkeypatch.setenv("HOME", str(tmp_path))
  arguments = ["--config=at", "--workdir=~/run", "--config.data.data_dir=~/tfds", "--model", "~/a.pt"]
  options = command_line.parse(arguments)
  assert options.workdir == f"{tmp_path}/run" and options.model == f"{tmp_path}/a.pt"
  assert options.config.data.data_dir == f"{tmp_path}/tfds"
  np.savez(tmp_path / "few.npz", images=np.zeros((2, 4, 4, 1), np.uint8), labels=np.arange(2))
  assert len(data.load("npz:~/few.npz", trains=False).test.labels) == 2
  assert convert.parse(["~/a.pt", "~/b"]).source == tmp_path / "a.pt"
  assert compare.parse(["--methods=at", "--workdir=~/c"]).workdir == tmp_path / "c"
