"""Checks the attacks of a configuration: of training, validation and the suite, user-defined ones included."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lrat_jax import attacks, data
from lrat_jax.config import attack_entries, suites, validate_user_code
from lrat_jax.config.fields import errors_of, value_at
from lrat_jax.core import user_code
from lrat_jax.core.arguments import check_count, check_number
from lrat_jax.core.errors import ConfigError

# Groups of attacks, whose names are also used as file names.
GROUPS = ("train_attacks", "eval.suite")


def attack_paths(config: ConfigDict) -> Iterator[str]:
  """The path of every attack, such as "train_attacks.pgd"."""
  yield "validation_attack"
  yield from (f"{group}.{name}" for group in GROUPS for name in value_at(config, group))


def check_suite(config: ConfigDict) -> None:
  """Raises ConfigError if a name in the suite is misleading, or if `eval.robustbench` lacks its AutoAttack entry."""
  if "clean" in config.eval.suite:
    raise ConfigError("config.eval.suite.clean: 'clean' is the name of the clean accuracy; rename the attack.")
  entry = config.eval.suite.get(attack_entries.AUTOATTACK)
  if entry and attack_entries.is_autoattack(entry) and not attack_entries.is_whole(entry):
    raise ConfigError(
      "config.eval.suite.autoattack does not run all four attacks of AutoAttack: use suite=apgd or suite=full_apgd, "
      "or give the entry another name."
    )
  if config.eval.robustbench and suites.robustbench_name(config.eval.suite) is None:
    raise ConfigError("config.eval.robustbench=True needs AutoAttack's full standard version; use suite=autoattack.")


def _entry(config: ConfigDict, path: str) -> dict[str, Any]:
  """The fields of an attack, without those that belong to the suite."""
  entry = value_at(config, path).to_dict()
  return attack_entries.without_surrogate(entry) if path.startswith("eval.suite.") else entry


def _user_attacks(config: ConfigDict, paths: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
  """The user-defined attacks, as (path, fields)."""
  entries = ((path, _entry(config, path)) for path in paths)
  return ((path, entry) for path, entry in entries if user_code.is_name(entry.get("name")))


def find_user_attacks(config: ConfigDict) -> None:
  """Imports the user-defined attacks, and compares their fields with the arguments that they take."""
  for path, entry in _user_attacks(config, attack_paths(config)):
    with errors_of(path):
      validate_user_code.check_fields(entry)
      attacks.from_config(entry)


def try_user_attacks(config: ConfigDict, paths: Iterable[str], image_shape: tuple[int, ...], num_classes: int) -> None:
  for path, entry in _user_attacks(config, paths):
    with errors_of(path):
      validate_user_code.check_attack(entry, image_shape, num_classes, ramped=path.startswith("train_attacks"))


def check_attacks(config: ConfigDict, paths: Iterable[str], image_shape: tuple[int, ...], num_classes: int) -> None:
  """Traces the built-in attacks as the run will, on a stand-in for the model: attacks check their own arguments."""

  def logits_fn(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2, 3))[:, None] * jnp.arange(num_classes)

  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  labels = jax.ShapeDtypeStruct((1,), jnp.int32)
  ours = [path for path in paths if not user_code.is_name(value_at(config, path).get("name"))]
  for path in ours:
    try:
      with errors_of(path):
        if path.startswith("eval.suite.") and attack_entries.is_autoattack(value_at(config, path)):
          traced = attack_entries.changed_stages(value_at(config, path).to_dict(), image_shape, num_classes)
        elif path.startswith("eval.suite.") and _is_read(config, value_at(config, path)):
          attacks.from_config(value_at(config, path))  # any kind that has a file, on images of any size
          traced = []
        else:
          traced = [_traced_attack(config, path)]
        if path.startswith("train_attacks."):
          attacks.most_surviving_steps(attacks.from_config(_entry(config, path)))
        for attack in traced:
          jax.eval_shape(lambda x, y, attack=attack: attack(jax.random.key(0), logits_fn, x, y), images, labels)
    except (TypeError, AttributeError) as error:  # only a configuration file can give an attack values of other types
      raise ConfigError(f"config.{path} contains a value of the wrong type: {error}") from None


def _traced_attack(config: ConfigDict, path: str) -> attacks.Attack:
  """The attack at a path; one of the suite that needs features gets a stand-in for them."""
  entry = _entry(config, path)
  attack = attacks.from_config(entry)
  has_features = path.startswith("eval.suite.") and attack_entries.takes_features(entry)
  return functools.partial(attack, features_fn=lambda images: [images]) if has_features else attack


def _is_read(config: ConfigDict, entry: ConfigDict) -> bool:
  """Whether an entry of the suite is read from files."""
  return bool(config.data.corruptions) and attack_entries.is_corruption(entry)


def check_corruptions(config: ConfigDict, corrupted: data.CorruptedImages | None) -> None:
  """Checks that entries of the suite that are read from files exist, and that the test split is evaluated.

  Raises:
    ConfigError: a kind without a valid file, a severity outside 1..5, or another split than the test split.
  """
  read = {name: entry for name, entry in config.eval.suite.items() if _is_read(config, entry)}
  if read and config.eval.split != "test":
    raise ConfigError(f"config.eval.split={config.eval.split!r}: config.data.corruptions is only for the test split.")
  for name, entry in read.items():
    with errors_of(f"eval.suite.{name}"):
      check_number(check_count(entry.severity, "severity", 1), "severity", f"[1, {data.SEVERITIES}]")
    try:
      corrupted.check(entry.kind)
    except data.DataError as error:
      raise ConfigError(f"config.{error}") from None
