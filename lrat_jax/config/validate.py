"""Whether a configuration makes sense, before anything is built or written. One clear line if it does not."""

import contextlib
import functools
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lrat_jax import attacks, data, models, objectives, reweighting
from lrat_jax.config import default as config_lib
from lrat_jax.config import suites, validate_user_code
from lrat_jax.core import user_code
from lrat_jax.core.arguments import check_count, check_number
from lrat_jax.core.errors import ConfigError

# Far beyond use, and far from where float32, int32 or memory end.
_LARGEST = 1e6
_MOST = 10**9
_LARGEST_BATCH = 2**20
_LARGEST_IMAGE = 2**14
# Of RandAugment, one after another; each is compiled anew.
_MOST_OPERATIONS = 10
# With 1 no class would be the likeliest.
_MOST_SMOOTHING = 0.99
# Of Beta distributions that are drawn from, with a margin to where draws in float32 fail.
_ALPHAS = 1e-3, 1e3

# Groups whose members are attacks, by names that also name files.
_ATTACK_GROUPS = ("train_attacks", "eval.suite")
_NAME = re.compile(r"\w[\w.+@-]{0,199}")


def _is_like(value: Any, like: Any) -> bool:
  """Whether a value is of a field's type: a whole number serves as a float, a list of numbers as a tuple of them."""
  if isinstance(like, tuple):
    return isinstance(value, tuple | list) and all(_is_like(entry, 0.0) for entry in value)
  if isinstance(like, float):
    return isinstance(value, int | float) and not isinstance(value, bool)
  return type(value) is type(like)


def _check_group(config: Any, like: ConfigDict, path: str) -> None:
  """Refuses fields that are missing, unknown or of another type than in `like`, in groups too."""
  if not isinstance(config, ConfigDict):
    raise ConfigError(f"config{path}={config!r} must be a group of the fields {sorted(like)}.")
  for name in sorted({*like, *config}, key=str):
    field = f"{path}.{name}"
    if name not in config:
      raise ConfigError(f"config{field} is missing.")
    if name not in like:
      raise ConfigError(f"config{field} is unknown; config{path}: choose from {sorted(like)}.")
    if field[1:] in (*_ATTACK_GROUPS, "validation_attack"):
      continue
    if isinstance(like[name], ConfigDict):
      _check_group(config[name], like[name], field)
    elif not _is_like(config[name], like[name]):
      raise ConfigError(f"config{field}={config[name]!r} must be of the type {type(like[name]).__name__}.")


def check_form(config: Any) -> None:
  """Refuses what is no configuration: other fields than `config.default` has, or values of other types.

  The command line cannot make such a one, but a file can. Names must serve as those of files, and lead nowhere else.

  Raises:
    ConfigError: with the field.
  """
  _check_group(config, config_lib.default("any"), "")
  for path in _ATTACK_GROUPS:
    group = _field(config, path)
    if not isinstance(group, ConfigDict) or not len(group):
      raise ConfigError(f"config.{path}={group!r} must be a group of one attack or more.")
    for name in group:
      if not _NAME.fullmatch(str(name)):
        raise ConfigError(f"config.{path} names an attack {name!r}; a name is of letters, digits and _ . + - @ alone.")
  for path in _attack_paths(config):
    if not isinstance(_field(config, path), ConfigDict):
      raise ConfigError(f"config.{path}={_field(config, path)!r} must be a group of an attack's fields.")
  if not _NAME.fullmatch(config.name):
    raise ConfigError(f"config.name={config.name!r} must be of letters, digits and _ . + - @ alone.")


def _field(config: ConfigDict, path: str) -> Any:
  for key in path.split("."):
    config = config[key]
  return config


def _choice(config: ConfigDict, path: str, choices: Collection[str]) -> None:
  if (value := _field(config, path)) not in choices:
    raise ConfigError(f"config.{path}={value!r} is unknown; choose from {sorted(choices)}.")


def _range(config: ConfigDict, path: str, low: float, high: float = _LARGEST, *, open_low: bool = False) -> None:
  value = _field(config, path)
  if not (low < value if open_low else low <= value) or not value <= high:
    raise ConfigError(f"config.{path}={value!r} is outside {'(' if open_low else '['}{low:g}, {high:g}].")


def _attack_paths(config: ConfigDict) -> Iterator[str]:
  yield "validation_attack"
  yield from (f"{group}.{name}" for group in _ATTACK_GROUPS for name in _field(config, group))


@contextlib.contextmanager
def _errors_of(group: str, named: str = "name") -> Iterator[None]:
  """Names the field of an error inside: of user code `named`, whose value it begins with; else its own in the group."""
  try:
    yield
  except ConfigError:
    raise
  except user_code.UserCodeError as error:
    raise ConfigError(f"config.{group}.{named}={error}") from error
  except ValueError as error:
    raise ConfigError(f"config.{group}.{error}") from error


def _check_kind(config: ConfigDict, group: str, kinds: Collection[str]) -> None:
  """One of the weightings that there are, or the user's own, which is found."""
  with _errors_of(group, "kind"):
    if user_code.is_name(name := config[group].kind):
      user_code.function(name)
    elif name not in kinds:
      choices = f"choose from {sorted(kinds)}, or write package.module:function"
      raise ValueError(f"kind={name!r} is unknown; {choices}.")


def _entry(config: ConfigDict, path: str) -> dict[str, Any]:
  """The fields of an attack, without those that are its suite's."""
  entry = _field(config, path).to_dict()
  return suites.without_surrogate(entry) if path.startswith("eval.suite.") else entry


def _user_attacks(config: ConfigDict, paths: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
  """The attacks that are the user's own, as (path, fields)."""
  entries = ((path, _entry(config, path)) for path in paths)
  return ((path, entry) for path, entry in entries if user_code.is_name(entry.get("name")))


def _find_user_attacks(config: ConfigDict) -> None:
  """Finds the user's own attacks, and compares the fields that they have with those that they take."""
  for path, entry in _user_attacks(config, _attack_paths(config)):
    with _errors_of(path):
      validate_user_code.check_fields(entry)
      attacks.from_config(entry)


def _model_options(config: ConfigDict) -> dict[str, Any]:
  return {name: config.model[name] for name in models.OPTIONS}


def _try_user_code(config: ConfigDict, image_shape: tuple[int, ...], num_classes: int) -> None:
  """Tries what a configuration names of the user's functions, as the run will. Raises ConfigError."""
  model, num_variants = config.model, len(config_lib.variant_names(config))
  options = {name: config.local_weights[name] for name in ("total", "minimum_natural", "slope", "bias")}
  if user_code.is_name(model.name):
    with _errors_of("model"):
      validate_user_code.check_model(model.name, _model_options(config), image_shape, num_classes)
  if user_code.is_name(name := config.local_weights.kind):
    with _errors_of("local_weights", "kind"):
      validate_user_code.check_local(name, options, num_variants)
  if user_code.is_name(name := config.global_weights.kind):
    with _errors_of("global_weights", "kind"):
      validate_user_code.check_global(name, num_variants)
  _try_user_attacks(config, _attack_paths(config), image_shape, num_classes)


def _try_user_attacks(config: ConfigDict, paths: Iterable[str], image_shape: tuple[int, ...], num_classes: int) -> None:
  for path, entry in _user_attacks(config, paths):
    with _errors_of(path):
      validate_user_code.check_attack(entry, image_shape, num_classes, ramped=path.startswith("train_attacks"))


def _check_attacks(config: ConfigDict, paths: Iterable[str], image_shape: tuple[int, ...], num_classes: int) -> None:
  """Traces the attacks that are not the user's as the run will, on a stand-in for the model: their own checks speak."""

  def logits_fn(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2, 3))[:, None] * jnp.arange(num_classes)

  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  labels = jax.ShapeDtypeStruct((1,), jnp.int32)
  ours = [path for path in paths if not user_code.is_name(_field(config, path).get("name"))]
  for path in ours:
    try:
      with _errors_of(path):
        if path.startswith("eval.suite.") and suites.is_autoattack(_field(config, path)):
          traced = suites.changed_stages(_field(config, path).to_dict(), image_shape, num_classes)
        elif path.startswith("eval.suite.") and _is_read(config, _field(config, path)):
          attacks.from_config(_field(config, path))  # any kind that there is a file of, on images of any size
          traced = []
        else:
          traced = [_traced_attack(config, path)]
        for attack in traced:
          jax.eval_shape(lambda x, y, attack=attack: attack(jax.random.key(0), logits_fn, x, y), images, labels)
    except (TypeError, AttributeError) as error:  # only a file can give an attack values of other types
      raise ConfigError(f"config.{path} holds a value of the wrong type: {error}") from None


def _traced_attack(config: ConfigDict, path: str) -> attacks.Attack:
  """The attack at a path; in a suite features have a stand-in."""
  entry = _entry(config, path)
  attack = attacks.from_config(entry)
  has_features = path.startswith("eval.suite.") and suites.takes_features(entry)
  return functools.partial(attack, features_fn=lambda images: [images]) if has_features else attack


def _is_read(config: ConfigDict, entry: ConfigDict) -> bool:
  """Whether an entry of the suite is read from files."""
  return bool(config.data.corruptions) and suites.is_corruption(entry)


def check_corruptions(config: ConfigDict, corrupted: data.CorruptedImages | None) -> None:
  """Entries of the suite that are read from files must be there, and of the split that is evaluated.

  Raises:
    ConfigError: a kind that there is no right file of, a severity outside 1..5, or another split than the test split.
  """
  read = {name: entry for name, entry in config.eval.suite.items() if _is_read(config, entry)}
  if read and config.eval.split != "test":
    raise ConfigError(f"config.eval.split={config.eval.split!r}: config.data.corruptions is of the test split alone.")
  for name, entry in read.items():
    with _errors_of(f"eval.suite.{name}"):
      check_number(check_count(entry.severity, "severity", 1), "severity", f"[1, {data.SEVERITIES}]")
    try:
      corrupted.check(entry.kind)
    except data.DataError as error:
      raise ConfigError(f"config.{error}") from None


def _check_momentum(config: ConfigDict) -> None:
  _range(config, "optimizer.momentum", 0, 1)
  _range(config, "optimizer.second_momentum", 0, 1)
  for name in ("momentum", "second_momentum"):
    if config.optimizer.name == "adamw" and config.optimizer[name] == 1:
      raise ConfigError(f"config.optimizer.{name}=1.0: AdamW divides by 1 minus its powers; take less than 1.")


def _check_augmentation(config: ConfigDict) -> None:
  _range(config, "data.randaugment.num_ops", 0, _MOST_OPERATIONS)
  _range(config, "data.randaugment.magnitude", 0, data.MAX_MAGNITUDE)
  _choice(config, "data.idbh", ("none", *data.IDBH))
  if config.data.idbh != "none" and config.data.crop_padding:
    raise ConfigError(
      f"config.data.idbh={config.data.idbh!r} has crops of its own; take data.crop_padding=0 with it, not "
      f"{config.data.crop_padding}."
    )
  _range(config, "train.label_smoothing", 0, _MOST_SMOOTHING)
  for path in ("data.mixup", "data.cutmix"):
    if _field(config, path):
      _range(config, path, *_ALPHAS)


def _check_loading(config: ConfigDict) -> None:
  _range(config, "data.workers", 0, 1024)
  _range(config, "data.image_size", 0, _LARGEST_IMAGE)
  _range(config, "data.random_resized_crop", 0, 1)
  loading, placement = config.data.loading, config.data.placement
  if loading == "stream" and placement == "device":
    raise ConfigError("config.data.placement='device': images cannot wait there with data.loading=stream.")
  if not config.data.random_resized_crop:
    return
  where = f"config.data.random_resized_crop={config.data.random_resized_crop}"
  if not config.data.image_size:
    raise ConfigError(f"{where} needs config.data.image_size, the size of the crops.")
  if loading == "memory" or placement == "device":
    raise ConfigError(f"{where} reads each picture anew: it needs loading=stream or auto, and placement=host or auto.")


def _check_mixture(config: ConfigDict) -> None:
  """Every batch has images of both sources."""
  _range(config, "data.extra.fraction", 0, 1)
  fraction, size = config.data.extra.fraction, config.data.batch_size
  if config.data.extra.source and not 0 < data.num_extra(fraction, size) < size:
    raise ConfigError(f"config.data.extra.fraction={fraction} of {size} images leaves a source without any.")


def _check_logit_pairing(config: ConfigDict) -> None:
  _range(config, "logit_pairing.weight", 0)
  if config.logit_pairing.weight:
    _choice(config, "logit_pairing.attack", list(config.train_attacks))
    if len(config_lib.variant_names(config)) < 2:
      raise ConfigError(
        f"config.logit_pairing.weight={config.logit_pairing.weight} compares the variants of a pair, of which there is "
        "one; name more training attacks, with train.variants=all."
      )
    if config.train.microbatches > 1:
      raise ConfigError(
        f"config.train.microbatches={config.train.microbatches}: logit pairing counts over the whole batch; take "
        "train.microbatches=1 with it, or logit_pairing.weight=0."
      )


def _check_counts(config: ConfigDict) -> None:
  """Seed, sizes and counts."""
  _range(config, "seed", 0, 2**32 - 1)
  _range(config, "mesh.model_devices", 1, _MOST)
  _range(config, "mesh.shard_above", 0, _MOST)
  for path in ("data.batch_size", "eval.batch_size"):
    _range(config, path, 1, _LARGEST_BATCH)
  for path in (
    "train.epochs",
    "train.microbatches",
    "train.steps_per_call",
    "train.log_every_steps",
    "train.checkpoint_every_steps",
    "data.validation_size",
  ):
    _range(config, path, 1, _MOST)
  for path in (
    "data.crop_padding",
    "data.cutout",
    "data.train_size",
    "eval.num_images",
    "eval.num_sanity_examples",
    "train.num_logged_examples",
  ):
    _range(config, path, 0, _MOST)


def _check_image_list(config: ConfigDict) -> None:
  """A list is of test images."""
  if config.eval.image_list and config.eval.split != "test":
    raise ConfigError(
      f"config.eval.image_list={config.eval.image_list!r} names test images; take eval.split=test with it, not "
      f"{config.eval.split!r}."
    )


def _check_suite(config: ConfigDict) -> None:
  """Names in the suite say what is run."""
  if "clean" in config.eval.suite:
    raise ConfigError("config.eval.suite.clean: 'clean' is the name of the clean accuracy; give the attack another.")
  if (entry := config.eval.suite.get(suites.AUTOATTACK)) and suites.is_autoattack(entry) and not suites.is_whole(entry):
    raise ConfigError(
      "config.eval.suite.autoattack does not run all four attacks of AutoAttack: take suite=apgd or suite=full_apgd, "
      "or give the entry another name."
    )
  if config.eval.robustbench and suites.robustbench_name(config.eval.suite) is None:
    raise ConfigError("config.eval.robustbench=True needs AutoAttack's standard version, whole; take suite=autoattack.")


def check(config: ConfigDict) -> None:
  """Refuses values that no run can use. Raises ConfigError naming the field, the value and the choices."""
  _choice(config, "objective", objectives.OBJECTIVES)
  _check_kind(config, "local_weights", reweighting.LOCAL_KINDS)
  _check_kind(config, "global_weights", reweighting.GLOBAL_KINDS)
  _choice(config, "optimizer.name", config_lib.OPTIMIZERS)
  _choice(config, "optimizer.decay", config_lib.DECAYS)
  _choice(config, "optimizer.schedule", config_lib.SCHEDULES)
  _choice(config, "data.placement", data.PLACEMENTS)
  _choice(config, "data.loading", data.LOADINGS)
  _check_loading(config)
  _choice(config, "eval.checkpoint", config_lib.CHECKPOINTS)
  _choice(config, "eval.split", data.SPLITS)
  _check_image_list(config)
  _choice(config, "train.attack_batch_norm", ("eval", "train"))
  _choice(config, "train.init_head", config_lib.HEADS)
  _choice(config, "model.batch_norm", (config_lib.SYNCHRONISED, config_lib.LOCAL))
  _choice(config, "train.variants", (config_lib.ALL, config_lib.SAMPLED))
  _check_counts(config)
  for path in (
    "train.epsilon_ramp_fraction",
    "local_weights.begin_fraction",
    "global_weights.begin_fraction",
    "awp.begin_fraction",
    "optimizer.warmup",
  ):
    _range(config, path, 0, 1)
  _range(config, "train.ema_decay", 0, 0.999999)
  _check_mixture(config)
  _range(config, "beta", 0)
  _check_augmentation(config)
  _range(config, "awp.gamma", 0, 1)
  _check_logit_pairing(config)
  _range(config, "optimizer.learning_rate", 0)
  _range(config, "optimizer.weight_decay", 0)
  _range(config, "optimizer.clip_norm", 0)
  _check_momentum(config)
  _range(config, "optimizer.decay_rate", 0, 1)
  boundaries = tuple(config.optimizer.boundary_fractions)
  if list(boundaries) != sorted(set(boundaries)) or not all(0 < b < 1 for b in boundaries):
    raise ConfigError(f"config.optimizer.boundary_fractions={boundaries} must be rising shares of the steps in (0, 1).")
  _range(config, "local_weights.total", 0, open_low=True)
  _range(config, "local_weights.minimum_natural", 0, config.local_weights.total)
  for path in ("local_weights", "global_weights.gairat", "global_weights.mail"):
    _range(config, f"{path}.slope", 0)
    _range(config, f"{path}.bias", -_LARGEST)
  _choice(config, "model.dtype", ("auto", *models.DTYPES))
  _choice(config, "eval.attack_dtype", models.DTYPES)
  with _errors_of("model"):
    models.create(config.model.name, 2, **_model_options(config))
  if not config.compilation_cache:
    raise ConfigError("config.compilation_cache='' names no folder; it is auto, off or a folder.")
  _check_suite(config)
  # Before the data is loaded, images so large that only the data's own shape can make an l2 radius too wide.
  _check_attacks(config, _attack_paths(config), (1024, 1024, 3), 10)
  _find_user_attacks(config)


def check_for_data(
  config: ConfigDict, image_shape: tuple[int, ...], num_classes: int, num_train: int, extra: int = 0
) -> None:
  """What only the data can tell: channels, classes, sizes, l2 radii, how many batches there are. Raises ConfigError.

  `extra` is how many images the extra source has, where there is one.
  """
  channels, given = image_shape[-1], len(config.model.mean)
  if config.model.preprocessing == "mean_std" and given not in (1, channels):
    raise ConfigError(f"config.model.mean={config.model.mean} has {given} entries, the images {channels} channels.")
  if config.data.batch_size > num_train:
    raise ConfigError(f"config.data.batch_size={config.data.batch_size} is more than the {num_train} training images.")
  if extra and (needed := data.num_extra(config.data.extra.fraction, config.data.batch_size)) > extra:
    raise ConfigError(
      f"config.data.extra.source={config.data.extra.source!r} has {extra} images, a batch {needed} of them."
    )
  if config.train.epochs * (num_train // config.data.batch_size) >= 2**31:  # steps are counted in int32
    raise ConfigError(f"config.train.epochs={config.train.epochs} makes more than {2**31 - 1:,} steps.")
  if config.data.crop_padding > min(image_shape[:2]):
    raise ConfigError(
      f"config.data.crop_padding={config.data.crop_padding} is more than the side of images {image_shape}."
    )
  fields = {"data.randaugment.num_ops": 0, "data.idbh": "none"}
  for path in (path for path, off in fields.items() if _field(config, path) != off and channels not in (1, 3)):
    raise ConfigError(f"config.{path}={_field(config, path)!r} is for images of 1 or 3 channels, not of {channels}.")
  _check_attacks(config, _attack_paths(config), image_shape, num_classes)
  _try_user_code(config, image_shape, num_classes)


def check_for_evaluation(config: ConfigDict, image_shape: tuple[int, ...], num_classes: int) -> None:
  """The same where nothing is trained: the attacks of the suite alone. Raises ConfigError."""
  paths = [path for path in _attack_paths(config) if path.startswith("eval.suite.")]
  _check_attacks(config, paths, image_shape, num_classes)
  _try_user_attacks(config, paths, image_shape, num_classes)


def check_for_devices(config: ConfigDict, num_devices: int, *, trains: bool = True) -> None:
  """Batches must split evenly over the devices, those of training where it trains. Raises ConfigError."""
  for path in ("data.batch_size", "eval.batch_size") if trains else ("eval.batch_size",):
    if (size := _field(config, path)) % num_devices:
      raise ConfigError(f"config.{path}={size} is not divisible by the {num_devices} devices in use.")
  share, parts = config.data.batch_size // num_devices, config.train.microbatches
  if trains and share % parts:
    divisors = [n for n in range(1, share + 1) if share % n == 0]
    raise ConfigError(
      f"config.train.microbatches={parts} does not divide the {share} images of a batch that each device has; choose "
      f"from {divisors}."
    )
