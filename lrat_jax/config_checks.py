"""Whether a configuration makes sense, before anything is built or written. One clear line if it does not."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lrat_jax import attacks, data, models, objectives, optim, reports, reweighting, suites


class ConfigError(ValueError):
  """Something that the user asked for cannot be; the message is one line that names the field and the value."""


def _field(config: ConfigDict, path: str) -> Any:
  for key in path.split("."):
    config = config[key]
  return config


def _choice(config: ConfigDict, path: str, choices: Collection[str]) -> None:
  if (value := _field(config, path)) not in choices:
    raise ConfigError(f"config.{path}={value!r} is unknown; choose from {sorted(choices)}.")


def _range(config: ConfigDict, path: str, low: float, high: float = float("inf"), *, open_low: bool = False) -> None:
  value = _field(config, path)
  if not (low < value if open_low else low <= value) or not value <= high:
    raise ConfigError(f"config.{path}={value!r} is outside {'(' if open_low else '['}{low:g}, {high:g}].")


def _attack_paths(config: ConfigDict) -> list[str]:
  suites = ("train_attacks", "eval.suite")
  return ["validation_attack", *(f"{suite}.{name}" for suite in suites for name in _field(config, suite))]


def _check_attacks(config: ConfigDict, image_shape: tuple[int, ...], num_classes: int) -> None:
  """Traces every attack as the run will, on a stand-in for the model, so that its own checks speak."""

  def logits_fn(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2, 3))[:, None] * jnp.arange(num_classes)

  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  labels = jax.ShapeDtypeStruct((1,), jnp.int32)
  for path in _attack_paths(config):
    try:
      if path.startswith("eval.suite.") and suites.is_autoattack(_field(config, path)):
        suites.check_entry(_field(config, path).to_dict(), image_shape, num_classes)
        continue
      attack = attacks.from_config(_field(config, path))
      jax.eval_shape(lambda x, y, attack=attack: attack(jax.random.key(0), logits_fn, x, y), images, labels)
    except ValueError as error:
      raise ConfigError(f"config.{path}.{error}") from None


def check(config: ConfigDict) -> None:
  """Refuses values that no run can use. Raises ConfigError naming the field, the value and the choices."""
  _choice(config, "objective", objectives.OBJECTIVES)
  _choice(config, "local_weights.kind", reweighting.LOCAL_KINDS)
  _choice(config, "global_weights.kind", reweighting.GLOBAL_KINDS)
  _choice(config, "optimizer.schedule", optim.SCHEDULES)
  _choice(config, "data.placement", data.PLACEMENTS)
  _choice(config, "eval.split", data.SPLITS)
  _choice(config, "train.attack_mode", ("eval", "train"))
  _range(config, "seed", 0, 2**32 - 1)
  for path in ("data.batch_size", "eval.batch_size", "train.epochs", "train.log_every", "train.checkpoint_every"):
    _range(config, path, 1)
  _range(config, "data.validation_size", 1)
  for path in ("data.crop_padding", "data.train_size", "eval.num_images", "eval.check_images"):
    _range(config, path, 0)
  _range(config, "train.weights_sample", 0)
  for path in ("train.epsilon_ramp", "local_weights.begin", "global_weights.begin", "awp.begin", "optimizer.warmup"):
    _range(config, path, 0, 1)
  _range(config, "train.ema_decay", 0, 0.999999)
  _range(config, "beta", 0)
  _range(config, "awp.gamma", 0, 1)
  _range(config, "optimizer.learning_rate", 0)
  _range(config, "optimizer.weight_decay", 0)
  _range(config, "optimizer.momentum", 0, 1)
  _range(config, "optimizer.factor", 0, 1)
  boundaries = tuple(config.optimizer.boundaries)
  if list(boundaries) != sorted(boundaries) or not all(0 < b < 1 for b in boundaries):
    raise ConfigError(f"config.optimizer.boundaries={boundaries} must be rising shares of the steps in (0, 1).")
  _range(config, "local_weights.total", 0, open_low=True)
  _range(config, "local_weights.minimum_natural", 0, config.local_weights.total)
  for path in ("local_weights", "global_weights.gairat", "global_weights.mail"):
    _range(config, f"{path}.slope", 0)
  _choice(config, "model.dtype", ("auto", *models.DTYPES))
  try:
    models.create(config.model.name, 2, mean=config.model.mean, std=config.model.std)
  except ValueError as error:
    raise ConfigError(f"config.model.{error}") from None
  if "clean" in config.eval.suite:
    raise ConfigError("config.eval.suite.clean: 'clean' is the name of the clean accuracy; give the attack another.")
  if config.eval.robustbench and reports.robustbench_name(config.eval.suite) is None:
    raise ConfigError("config.eval.robustbench=True needs AutoAttack's standard version, whole; take suite=standard.")
  # Before the data is loaded, images so large that only the data's own shape can make an l2 radius too wide.
  _check_attacks(config, (1024, 1024, 3), 10)


def check_for_data(config: ConfigDict, image_shape: tuple[int, ...], num_classes: int, num_train: int) -> None:
  """What only the data can tell: channels, classes, l2 radii, whether an epoch holds a batch. Raises ConfigError."""
  channels, given = image_shape[-1], len(config.model.mean)
  if given not in (1, channels):
    raise ConfigError(f"config.model.mean={config.model.mean} has {given} entries, the images {channels} channels.")
  if config.data.batch_size > num_train:
    raise ConfigError(f"config.data.batch_size={config.data.batch_size} is more than the {num_train} training images.")
  _check_attacks(config, image_shape, num_classes)


def check_for_devices(config: ConfigDict, num_devices: int) -> None:
  """Batches must split evenly over the devices. Raises ConfigError."""
  for path in ("data.batch_size", "eval.batch_size"):
    if (size := _field(config, path)) % num_devices:
      raise ConfigError(f"config.{path}={size} is not divisible by the {num_devices} devices in use.")
