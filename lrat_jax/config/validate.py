"""Checks a configuration before anything is built or written. An invalid one raises ConfigError with one clear line."""

import re
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from lrat_jax import data, models, objectives, reweighting
from lrat_jax.config import default as config_lib
from lrat_jax.config import validate_attacks, validate_user_code
from lrat_jax.config.fields import LARGEST, MOST, check_choice, check_range, errors_of, value_at
from lrat_jax.core import user_code
from lrat_jax.core.errors import ConfigError

_LARGEST_BATCH = 2**20
_LARGEST_IMAGE = 2**14
# Of RandAugment, applied one after another; each is compiled separately.
_MOST_OPERATIONS = 10
# With 1, no class would be the most likely one.
_MOST_SMOOTHING = 0.99
# The range of alpha in Beta(alpha, alpha), with a margin to values for which draws in float32 fail.
_ALPHAS = 1e-3, 1e3

# Names that are also used as file names.
_NAME = re.compile(r"\w[\w.+@-]{0,199}")
_NAME_RULE = "a name has up to 200 letters, digits and _ . + - @, and begins with a letter, a digit or _"


def _is_like(value: Any, like: Any) -> bool:
  """Whether a value has a field's type: an integer is allowed for a float, and a list of numbers for a tuple."""
  if isinstance(like, tuple):
    return isinstance(value, tuple | list) and all(_is_like(entry, 0.0) for entry in value)
  if isinstance(like, float):
    return isinstance(value, int | float) and not isinstance(value, bool)
  return type(value) is type(like)


def _check_group(config: Any, like: ConfigDict, path: str) -> None:
  """Raises ConfigError for fields that are missing, unknown or of another type than in `like`, also inside groups."""
  if not isinstance(config, ConfigDict):
    raise ConfigError(f"config{path}={config!r} must be a group of the fields {sorted(like)}.")
  for name in sorted({*like, *config}, key=str):
    field = f"{path}.{name}"
    if name not in config:
      raise ConfigError(f"config{field} is missing.")
    if name not in like:
      raise ConfigError(f"config{field} is unknown; config{path}: choose from {sorted(like)}.")
    if field[1:] in (*validate_attacks.GROUPS, "validation_attack"):
      continue
    if isinstance(like[name], ConfigDict):
      _check_group(config[name], like[name], field)
    elif not _is_like(config[name], like[name]):
      raise ConfigError(f"config{field}={config[name]!r} must be of type {type(like[name]).__name__}.")


def check_form(config: Any) -> None:
  """Raises ConfigError unless `config` has the fields of `config.default`, with values of the same types.

  The command line cannot make another configuration, but a file can. Names must be file names without a path.

  Raises:
    ConfigError: with the field.
  """
  _check_group(config, config_lib.default("any"), "")
  for path in validate_attacks.GROUPS:
    group = value_at(config, path)
    if not isinstance(group, ConfigDict) or not len(group):
      raise ConfigError(f"config.{path}={group!r} must be a group of at least one attack.")
    for name in group:
      if not _NAME.fullmatch(str(name)):
        raise ConfigError(f"config.{path} contains an attack named {name!r}; {_NAME_RULE}.")
  for path in validate_attacks.attack_paths(config):
    if not isinstance(value_at(config, path), ConfigDict):
      raise ConfigError(f"config.{path}={value_at(config, path)!r} must be a group of an attack's fields.")
  if not _NAME.fullmatch(config.name):
    raise ConfigError(f"config.name={config.name!r} is invalid; {_NAME_RULE}.")


def _check_kind(config: ConfigDict, group: str, kinds: Collection[str]) -> None:
  """Raises ConfigError unless a group's kind is one of `kinds` or a user-defined weighting that can be imported."""
  with errors_of(group, "kind"):
    if user_code.is_name(name := config[group].kind):
      user_code.function(name)
    elif name not in kinds:
      choices = f"choose from {sorted(kinds)}, or write package.module:function"
      raise ValueError(f"kind={name!r} is unknown; {choices}.")


def _model_options(config: ConfigDict) -> dict[str, Any]:
  return {name: config.model[name] for name in models.OPTIONS}


def _try_user_code(config: ConfigDict, image_shape: tuple[int, ...], num_classes: int) -> None:
  """Tries the user-defined functions that a configuration names, as the run will use them. Raises ConfigError."""
  model, num_variants = config.model, len(config_lib.variant_names(config))
  options = {name: config.local_weights[name] for name in ("total", "minimum_natural", "slope", "bias")}
  if user_code.is_name(model.name):
    with errors_of("model"):
      validate_user_code.check_model(model.name, _model_options(config), image_shape, num_classes)
  if user_code.is_name(name := config.local_weights.kind):
    with errors_of("local_weights", "kind"):
      validate_user_code.check_local(name, options, num_variants)
  if user_code.is_name(name := config.global_weights.kind):
    with errors_of("global_weights", "kind"):
      validate_user_code.check_global(name, num_variants)
  validate_attacks.try_user_attacks(config, validate_attacks.attack_paths(config), image_shape, num_classes)


def _check_momentum(config: ConfigDict) -> None:
  check_range(config, "optimizer.momentum", 0, 1)
  check_range(config, "optimizer.second_momentum", 0, 1)
  for name in ("momentum", "second_momentum"):
    if config.optimizer.name == "adamw" and config.optimizer[name] == 1:
      raise ConfigError(f"config.optimizer.{name}=1.0 must be less than 1: AdamW divides by 1 minus its powers.")


def _check_augmentation(config: ConfigDict) -> None:
  check_range(config, "data.randaugment.num_ops", 0, _MOST_OPERATIONS)
  check_range(config, "data.randaugment.magnitude", 0, data.MAX_MAGNITUDE)
  check_choice(config, "data.idbh", ("none", *data.IDBH))
  if config.data.idbh != "none" and config.data.crop_padding:
    raise ConfigError(
      f"config.data.idbh={config.data.idbh!r} makes its own crops; use data.crop_padding=0 with it, not "
      f"{config.data.crop_padding}."
    )
  check_range(config, "train.label_smoothing", 0, _MOST_SMOOTHING)
  for path in ("data.mixup", "data.cutmix"):
    if value_at(config, path):
      check_range(config, path, *_ALPHAS)


def _check_loading(config: ConfigDict) -> None:
  check_range(config, "data.workers", 0, 1024)
  check_range(config, "data.image_size", 0, _LARGEST_IMAGE)
  check_range(config, "data.random_resized_crop", 0, 1)
  loading, placement = config.data.loading, config.data.placement
  if loading == "stream" and placement == "device":
    raise ConfigError("config.data.placement='device': images cannot be kept on the device with data.loading=stream.")
  if not config.data.random_resized_crop:
    return
  where = f"config.data.random_resized_crop={config.data.random_resized_crop}"
  if not config.data.image_size:
    raise ConfigError(f"{where} needs config.data.image_size, the size of the crops.")
  if loading == "memory" or placement == "device":
    raise ConfigError(f"{where} reads each picture anew: it needs loading=stream or auto, and placement=host or auto.")


def _check_mixture(config: ConfigDict) -> None:
  """Raises ConfigError unless every batch has images of both sources."""
  check_range(config, "data.extra.fraction", 0, 1)
  fraction, size = config.data.extra.fraction, config.data.batch_size
  if config.data.extra.source and not 0 < data.num_extra(fraction, size) < size:
    raise ConfigError(f"config.data.extra.fraction={fraction} of {size} images leaves one source without images.")


def _check_logit_pairing(config: ConfigDict) -> None:
  check_range(config, "logit_pairing.weight", 0)
  if config.logit_pairing.weight:
    check_choice(config, "logit_pairing.attack", list(config.train_attacks))
    if len(config_lib.variant_names(config)) < 2:
      raise ConfigError(
        f"config.logit_pairing.weight={config.logit_pairing.weight} compares the variants of a pair, but there is only "
        "one; use more training attacks, with train.variants=all."
      )
    if config.train.microbatches > 1:
      raise ConfigError(
        f"config.train.microbatches={config.train.microbatches}: logit pairing averages over the whole batch; use "
        "train.microbatches=1 with it, or logit_pairing.weight=0."
      )


def _check_counts(config: ConfigDict) -> None:
  """Checks the seed, sizes and counts."""
  check_range(config, "seed", 0, 2**32 - 1)
  check_range(config, "mesh.model_devices", 1, MOST)
  check_range(config, "mesh.shard_above", 0, MOST)
  for path in ("data.batch_size", "eval.batch_size"):
    check_range(config, path, 1, _LARGEST_BATCH)
  for path in (
    "train.epochs",
    "train.microbatches",
    "train.steps_per_call",
    "train.log_every_steps",
    "train.checkpoint_every_steps",
    "data.validation_size",
  ):
    check_range(config, path, 1, MOST)
  for path in (
    "data.crop_padding",
    "data.cutout",
    "data.train_size",
    "eval.num_images",
    "eval.num_sanity_examples",
    "train.num_logged_examples",
  ):
    check_range(config, path, 0, MOST)


def _check_image_list(config: ConfigDict) -> None:
  """Raises ConfigError if an image list is given for another split than the test split."""
  if config.eval.image_list and config.eval.split != "test":
    raise ConfigError(
      f"config.eval.image_list={config.eval.image_list!r} lists test images; use eval.split=test with it, not "
      f"{config.eval.split!r}."
    )


def check(config: ConfigDict) -> None:
  """Raises ConfigError, with the field, the value and the choices, for values that no run can use."""
  check_choice(config, "objective", objectives.OBJECTIVES)
  _check_kind(config, "local_weights", reweighting.LOCAL_KINDS)
  _check_kind(config, "global_weights", reweighting.GLOBAL_KINDS)
  check_choice(config, "optimizer.name", config_lib.OPTIMIZERS)
  check_choice(config, "optimizer.decay", config_lib.DECAYS)
  check_choice(config, "optimizer.schedule", config_lib.SCHEDULES)
  check_choice(config, "data.placement", data.PLACEMENTS)
  check_choice(config, "data.loading", data.LOADINGS)
  _check_loading(config)
  check_choice(config, "eval.checkpoint", config_lib.CHECKPOINTS)
  check_choice(config, "eval.split", data.SPLITS)
  _check_image_list(config)
  check_choice(config, "train.attack_batch_norm", ("eval", "train"))
  check_choice(config, "train.init_head", config_lib.HEADS)
  check_choice(config, "model.batch_norm", (config_lib.SYNCHRONISED, config_lib.LOCAL))
  check_choice(config, "train.variants", (config_lib.ALL, config_lib.SAMPLED))
  _check_counts(config)
  for path in (
    "train.epsilon_ramp_fraction",
    "local_weights.begin_fraction",
    "global_weights.begin_fraction",
    "awp.begin_fraction",
    "optimizer.warmup",
  ):
    check_range(config, path, 0, 1)
  check_range(config, "train.ema_decay", 0, 0.999999)
  _check_mixture(config)
  check_range(config, "beta", 0)
  _check_augmentation(config)
  check_range(config, "awp.gamma", 0, 1)
  _check_logit_pairing(config)
  check_range(config, "optimizer.learning_rate", 0)
  check_range(config, "optimizer.weight_decay", 0)
  check_range(config, "optimizer.clip_norm", 0)
  _check_momentum(config)
  check_range(config, "optimizer.decay_rate", 0, 1)
  boundaries = tuple(config.optimizer.boundary_fractions)
  if list(boundaries) != sorted(set(boundaries)) or not all(0 < b < 1 for b in boundaries):
    raise ConfigError(f"config.optimizer.boundary_fractions={boundaries} must be increasing shares of steps in (0, 1).")
  check_range(config, "local_weights.total", 0, open_low=True)
  check_range(config, "local_weights.minimum_natural", 0, config.local_weights.total)
  for path in ("local_weights", "global_weights.gairat", "global_weights.mail"):
    check_range(config, f"{path}.slope", 0)
    check_range(config, f"{path}.bias", -LARGEST)
  check_choice(config, "model.dtype", ("auto", *models.DTYPES))
  check_choice(config, "eval.attack_dtype", models.DTYPES)
  with errors_of("model"):
    models.create(config.model.name, 2, **_model_options(config))
  if not config.compilation_cache:
    raise ConfigError("config.compilation_cache='' must be auto, off or a folder.")
  validate_attacks.check_suite(config)
  # The data is not loaded yet. This shape is so large that only `check_for_data`, with the true one, can refuse an l2
  # radius.
  validate_attacks.check_attacks(config, validate_attacks.attack_paths(config), (1024, 1024, 3), 10)
  validate_attacks.find_user_attacks(config)


def check_for_data(
  config: ConfigDict, image_shape: tuple[int, ...], num_classes: int, num_train: int, extra: int = 0
) -> None:
  """Checks what depends on the data: channels, classes, sizes, l2 radii, the number of batches. Raises ConfigError.

  `extra` is the number of images of the extra source, if there is one.
  """
  channels, given = image_shape[-1], len(config.model.mean)
  if config.model.preprocessing == "mean_std" and given not in (1, channels):
    raise ConfigError(
      f"config.model.mean={config.model.mean} has {given} entries, but the images have {channels} channels."
    )
  if config.data.batch_size > num_train:
    raise ConfigError(f"config.data.batch_size={config.data.batch_size} is more than the {num_train} training images.")
  if extra and (needed := data.num_extra(config.data.extra.fraction, config.data.batch_size)) > extra:
    raise ConfigError(
      f"config.data.extra.source={config.data.extra.source!r} has {extra} images, but a batch needs {needed}."
    )
  if config.train.epochs * (num_train // config.data.batch_size) >= 2**31:  # steps are counted in int32
    raise ConfigError(f"config.train.epochs={config.train.epochs} makes more than {2**31 - 1:,} steps.")
  if config.data.crop_padding > min(image_shape[:2]):
    raise ConfigError(
      f"config.data.crop_padding={config.data.crop_padding} is more than the shorter side of images {image_shape}."
    )
  fields = {"data.randaugment.num_ops": 0, "data.idbh": "none"}
  for path in (path for path, off in fields.items() if value_at(config, path) != off and channels not in (1, 3)):
    raise ConfigError(f"config.{path}={value_at(config, path)!r} needs images with 1 or 3 channels, not {channels}.")
  validate_attacks.check_attacks(config, validate_attacks.attack_paths(config), image_shape, num_classes)
  _try_user_code(config, image_shape, num_classes)


def check_for_evaluation(config: ConfigDict, image_shape: tuple[int, ...], num_classes: int) -> None:
  """The same if nothing is trained: checks only the attacks of the suite. Raises ConfigError."""
  paths = [path for path in validate_attacks.attack_paths(config) if path.startswith("eval.suite.")]
  validate_attacks.check_attacks(config, paths, image_shape, num_classes)
  validate_attacks.try_user_attacks(config, paths, image_shape, num_classes)


def check_for_devices(config: ConfigDict, num_devices: int, *, trains: bool = True) -> None:
  """Raises ConfigError unless batches split evenly over the devices; training batches only if `trains`."""
  for path in ("data.batch_size", "eval.batch_size") if trains else ("eval.batch_size",):
    if (size := value_at(config, path)) % num_devices:
      raise ConfigError(f"config.{path}={size} is not divisible by the {num_devices} devices in use.")
  share, parts = config.data.batch_size // num_devices, config.train.microbatches
  if trains and share % parts:
    divisors = [n for n in range(1, share + 1) if share % n == 0]
    raise ConfigError(
      f"config.train.microbatches={parts} does not divide the {share} images of a batch that each device has; choose "
      f"from {divisors}."
    )
