"""Checks user-defined functions on a tiny batch, before anything is trained.

It also lists the fields of a configuration that name such functions; check them before loading another user's.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from lrat_jax import attacks, data, models, reweighting
from lrat_jax.attacks import threat_model
from lrat_jax.core import sharding, user_code
from lrat_jax.core.user_code import UserCodeError

_BATCH = 3
# Tolerance for rounding of images and their distances in float32.
_ROUNDING = 1e-5
_COLLECTIONS = ("params", "batch_stats")


def named(config: Any, path: str = "config") -> Iterator[str]:
  """The fields of a configuration that name user-defined code, each as "config.model.name='package.module:make'"."""
  if isinstance(config, Mapping):
    for key, value in config.items():
      own = data.is_users(value) if key == "source" else user_code.is_name(value)
      if key in ("name", "kind", "source") and own:
        yield f"{path}.{key}={value!r}"
      yield from named(value, f"{path}.{key}")
  elif isinstance(config, list | tuple):
    for entry in config:
      yield from named(entry, path)


def _sharded(function: Callable[..., Any], *arguments: Any) -> Any:
  """Runs a function as a training step does: compiled, and inside a `shard_map`."""
  mesh = sharding.make_mesh(1)
  specs = tuple(sharding.REPLICATED if jnp.ndim(argument) == 0 else sharding.BATCHED for argument in arguments)
  return jax.jit(sharding.shard_map(function, mesh, specs, sharding.BATCHED))(*arguments)


def _tried(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
  """The same for a function that calls user-defined code, with NumPy results; any error is raised as UserCodeError."""
  try:
    return jax.tree.map(np.asarray, _sharded(function, *arguments))
  except UserCodeError:
    raise
  except Exception as error:  # anything that JAX raises for code that it cannot trace, compile or run
    raise UserCodeError(f"{name!r} failed ({user_code.reason(error)}).") from error


def check_fields(entry: Mapping[str, Any]) -> None:
  """Raises ValueError, with the field, if a field of a user-defined attack cannot be stored in a configuration file."""
  for field, value in entry.items():
    try:
      json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
      raise ValueError(
        f"{field}={value!r} cannot be stored; a field must be a finite number, text, or a list of them."
      ) from None


def check_attack(entry: Mapping[str, Any], image_shape: tuple[int, ...], num_classes: int, *, ramped: bool) -> None:
  """Runs a user-defined attack on a few images and a linear model.

  Args:
    entry: its configuration, with its name.
    image_shape: [h, w, c].
    ramped: whether a run ramps its lengths, which are then traced.

  Raises:
    UserCodeError: it fails, or returns images outside [0, 1] or its ball, or an impossible number of steps.
    ValueError: a field that no attack can use.
  """
  attack, name = attacks.from_config(entry), entry["name"]
  epsilon, norm = attack.keywords.get("epsilon", 0.0), attack.keywords.get("norm", "linf")
  threat_model.check_epsilon(epsilon, norm, image_shape)
  weights = jnp.cos(jnp.arange(float(np.prod(image_shape) * num_classes))).reshape(-1, num_classes)

  def run(keys: Array, images: Array, labels: Array, factor: Array) -> attacks.AttackResult:
    logits_fn = lambda points: points.reshape(len(points), -1) @ weights
    return (attacks.scaled(attack, factor) if ramped else attack)(keys, logits_fn, images, labels)

  keys = jax.random.split(jax.random.key(0), _BATCH)
  images = jax.random.uniform(jax.random.key(1), (_BATCH, *image_shape))
  result = _tried(name, run, keys, images, jnp.arange(_BATCH) % num_classes, jnp.ones(()))
  found, survived = result.images, result.surviving_steps
  if not (found.min() >= -_ROUNDING and found.max() <= 1 + _ROUNDING):  # also if one is NaN
    raise UserCodeError(f"{name!r} returns images from {found.min():g} to {found.max():g}; they must be in [0, 1].")
  most = max(attack.keywords.get("num_steps", 1), 1)
  if survived.min() < 0 or survived.max() > most:
    raise UserCodeError(
      f"{name!r} returns surviving_steps from {survived.min()} to {survived.max()}; "
      f"they must be in 0..num_steps, here 0..{most}."
    )
  farthest = float(threat_model.get_norm(norm).length(found - images).max())
  if "epsilon" in attack.keywords and farthest > epsilon * (1 + _ROUNDING) + _ROUNDING:
    raise UserCodeError(f"{name!r} leaves the {norm} ball of epsilon={epsilon:g}: an image is {farthest:g} away.")


def _check_logits(name: str, model: nn.Module, variables: Any, image_shape: tuple[int, ...], num_classes: int) -> None:
  """Traces the model in both modes, as a training step runs it, and checks the shape of its logits."""
  images = jnp.zeros((_BATCH, *image_shape))
  evaluated = lambda variables, images: model.apply(variables, images, train=False)
  trained = lambda variables, images: model.apply(variables, images, train=True, mutable=["batch_stats"])[0]
  for function in (evaluated, trained):
    specs = (sharding.REPLICATED, sharding.BATCHED)
    sharded = sharding.shard_map(function, sharding.make_mesh(1), specs, sharding.BATCHED)
    logits = jax.eval_shape(sharded, variables, images)
    if logits.shape != (_BATCH, num_classes):
      raise UserCodeError(
        f"{name!r}: its network returns {logits.shape} for images {images.shape}; "
        f"it must return logits {(_BATCH, num_classes)}."
      )


def check_model(name: str, fields: Mapping[str, Any], image_shape: tuple[int, ...], num_classes: int) -> None:
  """Traces a user-defined model, from its initial variables to logits with and without `train`.

  Args:
    fields: `models.OPTIONS`.

  Raises:
    UserCodeError: it fails, has variables that a run would not keep, or does not return logits [batch, classes].
  """
  try:
    model = models.create(name, num_classes, axis_name=sharding.AXIS, **fields)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    if "params" not in variables or not set(variables) <= set(_COLLECTIONS):
      raise UserCodeError(f"{name!r}: its network has the variables {sorted(variables)}; a run trains params and keeps"
                         " batch_stats, nothing else.")  # fmt: skip
    _check_logits(name, model, variables, image_shape, num_classes)
  except UserCodeError:
    raise
  except Exception as error:  # anything that user code and Flax raise
    raise UserCodeError(f"{name!r}: its network failed on images {image_shape} ({user_code.reason(error)}).") from error


def _scores(num_variants: int) -> Array:
  return jnp.linspace(-0.9, 0.9, _BATCH * num_variants).reshape(_BATCH, num_variants)


def _check_weights(name: str, what: str, weights: Any) -> None:
  if not np.all(np.isfinite(weights)):  # weights below 0 were replaced by NaN
    raise UserCodeError(f"{name!r} returns {what} weights that are below 0, NaN or infinite.")


def check_local(name: str, options: Mapping[str, float], num_variants: int) -> None:
  """Tries a user-defined local weighting.

  Raises:
    UserCodeError: it fails, or does not return weights (natural [b], adversarial [b, m]) of 0 or more.
  """
  function, scores = user_code.function(name), _scores(num_variants)
  expected = f"({(_BATCH,)}, {scores.shape})"

  def run(scores: Array) -> tuple[Array, Array]:
    found = function(scores, **options)
    shapes = tuple(jnp.shape(part) for part in found) if isinstance(found, tuple) else type(found).__name__
    if shapes != ((_BATCH,), scores.shape):
      raise UserCodeError(f"{name!r} returns {shapes} for vulnerabilities {scores.shape}; it must return {expected}.")
    return reweighting.user_local_weights(lambda *_, **__: found, scores, **options)

  for what, weights in zip(("natural", "adversarial"), _tried(name, run, scores), strict=True):
    _check_weights(name, what, weights)


def check_global(name: str, num_variants: int) -> None:
  """Tries a user-defined global weighting. Raises UserCodeError unless it returns raw weights [b] of 0 or more."""
  function, scores = user_code.function(name), _scores(num_variants)

  def run(scores: Array) -> Array:
    fractions = (1.0 - scores) / 2.0
    found = function(vulnerabilities=scores, surviving_fractions=fractions)
    if not hasattr(found, "shape") or found.shape != (_BATCH,):
      got = found.shape if hasattr(found, "shape") else type(found).__name__
      raise UserCodeError(f"{name!r} returns {got} for {_BATCH} pairs; it must return weights {(_BATCH,)}.")
    constant = lambda **_: found
    return reweighting.global_weights(
      constant, vulnerabilities=scores, surviving_fractions=fractions, axis_name=sharding.AXIS
    )

  _check_weights(name, "global", _tried(name, run, scores))
