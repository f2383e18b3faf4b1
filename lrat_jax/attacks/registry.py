"""Attacks by name, built-in and user-defined: from plain data to a function of (keys, logits_fn, images, labels)."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lrat_jax.attacks import threat_model
from lrat_jax.attacks._apgd import apgd
from lrat_jax.attacks._carlini_wagner import carlini_wagner
from lrat_jax.attacks._checks import check_batch
from lrat_jax.attacks._ddn import ddn
from lrat_jax.attacks._deepfool import deepfool
from lrat_jax.attacks._ead import ead
from lrat_jax.attacks._entry import AttackResult, entry, finished, per_image_keys
from lrat_jax.attacks._fab import fab
from lrat_jax.attacks._fmn import fmn
from lrat_jax.attacks._hop_skip_jump import hop_skip_jump
from lrat_jax.attacks._lpips import lpips
from lrat_jax.attacks._msd import msd
from lrat_jax.attacks._pgd import cw, fgsm, pgd
from lrat_jax.attacks._spatial import spatial
from lrat_jax.attacks._spsa import spsa
from lrat_jax.attacks._square import square
from lrat_jax.attacks._unforeseen import unforeseen
from lrat_jax.attacks.corruptions import corruption
from lrat_jax.core import microbatch as microbatch_lib
from lrat_jax.core import user_code
from lrat_jax.core.arguments import as_number, check_count, check_group
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn

Attack = Callable[..., AttackResult]

REGISTRY: dict[str, Attack] = {
  "apgd": apgd,
  "fgsm": fgsm,
  "pgd": pgd,
  "cw": cw,
  "msd": msd,
  "fab": fab,
  "square": square,
  "carlini_wagner": carlini_wagner,
  "ddn": ddn,
  "fmn": fmn,
  "deepfool": deepfool,
  "ead": ead,
  "hop_skip_jump": hop_skip_jump,
  "spsa": spsa,
  "spatial": spatial,
  "corruption": corruption,
  "unforeseen": unforeseen,
  "lpips": lpips,
}

# Lengths in units of the image range. A config may give them as fractions, such as "8/255".
_LENGTHS = ("epsilon", "step_size")
# The same for attacks in several norms, with one length per norm.
_LENGTHS_PER_NORM = ("radii", "step_sizes")


_FORM = "(keys, logits_fn, images, labels, *, ...)"


def _own(name: str) -> tuple[Attack, dict[str, inspect.Parameter]]:
  """The user-defined attack of that name, with the argument checks that all attacks have, and its parameters."""
  attack = user_code.function(name)
  parameters = user_code.parameters(name, attack, 4, _FORM)

  @entry()
  def run(keys: Array, logits_fn: LogitsFn, images: Array, labels: Array, **fields: Any) -> AttackResult:
    result = attack(keys, logits_fn, images, labels, **fields)
    return finished(logits_fn, labels, *_checked(name, result, images))

  return run, parameters


def _checked(name: str, result: Any, images: Array) -> tuple[Array, Array]:
  """The images and surviving steps that a user-defined attack returned. Raises UserCodeError if they are not valid."""
  if not isinstance(result, tuple) or len(result) < 2 or not all(hasattr(part, "dtype") for part in result[:2]):
    raise user_code.UserCodeError(
      f"{name!r} returns {type(result).__name__}; it must return an AttackResult of arrays."
    )
  found, survived = result[:2]
  batch = images.shape[:1]
  if found.shape != images.shape or not jnp.issubdtype(found.dtype, jnp.floating):
    raise user_code.UserCodeError(
      f"{name!r} returns images {found.dtype} {found.shape}; they must be float {images.shape}."
    )
  if survived.shape != batch or not jnp.issubdtype(survived.dtype, jnp.integer):
    raise user_code.UserCodeError(
      f"{name!r} returns surviving_steps {survived.dtype} {survived.shape}; they must be integers {batch}."
    )
  return found.astype(images.dtype), survived.astype(jnp.int32)


def _look_up(name: Any) -> tuple[Attack, dict[str, inspect.Parameter]]:
  """The attack of that name, and the parameters that a config may set."""
  if user_code.is_name(name):
    return _own(name)
  if not isinstance(name, str) or name not in REGISTRY:
    raise ValueError(
      f"name={name!r} is not an attack; choose from {sorted(REGISTRY)}, or write package.module:function."
    )
  parameters = inspect.signature(REGISTRY[name]).parameters
  return REGISTRY[name], {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def defaults(name: str) -> dict[str, Any]:
  """The default values of the keyword arguments of the attack of that name, for those that have one."""
  return {key: p.default for key, p in _look_up(name)[1].items() if p.default is not p.empty}


def from_config(config: Mapping[str, Any]) -> functools.partial[AttackResult]:
  """The attack that `config` describes: its `name`, and that attack's keyword arguments.

  Args:
    config: a mapping (for example an ml_collections.ConfigDict) such as
      {"name": "pgd", "norm": "linf", "epsilon": "8/255", "step_size": "2/255", "num_steps": 10}. A name of the form
      "package.module:function" is a user-defined attack: a function (keys, logits_fn, images, labels, *, ...) ->
      AttackResult, whose module is imported. It is called with one key per image, and the mapping's other fields.

  Returns:
    A `functools.partial`: (keys, logits_fn, images, labels) -> AttackResult.

  Raises:
    ValueError: an unknown name or argument (with the choices), a missing argument, or an invalid number.
    user_code.UserCodeError: a ValueError for a user-defined attack that does not exist or takes other arguments.
  """
  arguments = dict(config)
  name = arguments.pop("name", None)
  attack, parameters = _look_up(name)
  takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  parameters = {key: p for key, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
  unknown = sorted(set(arguments) - set(parameters))
  if unknown and not takes_any:
    raise ValueError(
      f"{unknown[0]}={arguments[unknown[0]]!r} is not an argument of {name!r}; choose from {sorted(parameters)}."
    )
  missing = [key for key, p in parameters.items() if p.default is p.empty and key not in arguments]
  if missing:
    raise ValueError(f"{missing[0]} is missing for {name!r}.")
  if user_code.is_name(name):  # so that `scaled` also applies to lengths that are defaults
    defaults = {key: p.default for key, p in parameters.items() if p.default is not p.empty and p.default is not None}
    arguments = defaults | arguments
    threat_model.get_norm(arguments.get("norm", "linf"))  # distances are measured in this norm
    check_count(arguments.get("num_steps", 0), "num_steps", 0)  # the most that `surviving_steps` counts
  for field in _LENGTHS:
    if field in arguments:
      arguments[field] = as_number(arguments[field], field)
  for field in _LENGTHS_PER_NORM:
    if field in arguments:
      given = check_group(arguments[field], field)
      arguments[field] = {norm: as_number(length, f"{field}.{norm}") for norm, length in given.items()}
  return functools.partial(attack, **arguments)


def most_surviving_steps(attack: functools.partial[AttackResult]) -> int:
  """The largest `surviving_steps` of an attack of `from_config`: GAIRAT's K, 1 or more.

  Raises:
    ValueError: the attack is HopSkipJump, whose number of queries is not known in advance.
  """
  defaults = {key: p.default for key, p in inspect.signature(attack.func).parameters.items()}
  given = defaults | attack.keywords
  if attack.func is hop_skip_jump:
    raise ValueError("name='hop_skip_jump' has no fixed number of steps, so it cannot be a training attack.")
  if attack.func is square:
    return given["num_queries"] + 1
  if attack.func is spatial:
    return given["num_rotations"] * given["num_translations"] ** 2
  factors = {
    carlini_wagner: "binary_search_steps",
    ead: "binary_search_steps",
    lpips: "num_rounds",
    fab: "num_restarts",
  }
  return max(given.get("num_steps", 1) * given.get(factors.get(attack.func, ""), 1), 1)


def scaled(attack: functools.partial[AttackResult], factor: float | Array) -> functools.partial[AttackResult]:
  """The same attack with its epsilon and step size multiplied by `factor`, to ramp them during training."""
  lengths = {key: attack.keywords[key] for key in (*_LENGTHS, *_LENGTHS_PER_NORM) if key in attack.keywords}
  return functools.partial(attack, **jax.tree.map(lambda length: length * factor, lengths))


def takes_distributions(attack: functools.partial[AttackResult]) -> bool:
  """Whether an attack accepts distributions over the classes (`label_distributions`) besides the true classes."""
  return "label_distributions" in inspect.signature(attack.func).parameters


def microbatch(attack: Attack, most: int | None) -> Attack:
  """The same attack, run on at most `most` images at a time, from the first step to the last; None: all at once.

  For networks whose activations for a whole batch would not stay in a CPU core's cache from step to step. `logits_fn`
  must compute each image's logits from that image alone. Apply `scaled` first. The keyword arguments of the returned
  attack are arrays with one row per image.

  Raises:
    ValueError: `most` is not an integer of 1 or more.
  """
  if most is None:
    return attack
  check_count(most, "most", 1)

  def run(keys: Keys, logits_fn: LogitsFn, images: Images, labels: Labels, **per_image: Array) -> AttackResult:
    check_batch(images, labels)
    on_few = lambda keys, images, labels, more: attack(keys, logits_fn, images, labels, **more)
    results = microbatch_lib.microbatch(on_few, most, per_image_keys(keys, images), images, labels, per_image)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)

  return run
