"""The start and end of every attack: checks and converts the arguments, and returns the result in the images' type.

Attacks compute in float32 or wider. The model is evaluated on images of the type that was given, and its logits are
converted once, right after the call.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrat_jax.attacks import _checks, losses, threat_model
from lrat_jax.convolutions import rewrite
from lrat_jax.core import arguments as arguments_lib
from lrat_jax.core import microbatch, user_code
from lrat_jax.core.typing import Answers, Counts, Images, KeyPerImage, Keys, Labels, LogitsFn, OneKey, PerImage

_STEP_SIZES = "[0, 1e6]"
_KEY_KIND = "threefry2x32"


class AttackResult(NamedTuple):
  """The result of an attack.

  Attributes:
    images: float [batch, h, w, c] in [0, 1], inside the epsilon ball; carries no gradient.
    surviving_steps: int32 [batch], in 0..K, the number of iterates x^0..x^{K-1} (including the start, not the
      returned point) that the model gets right: GAIRAT's kappa (arXiv:2010.01736).
    success: bool [batch], whether the model is wrong on the returned image, also if it was wrong on the clean one;
      for an attack with `targets`, whether it predicts the target. Costs one forward pass, which `jit` removes if the
      value is not used. None only if a user-defined attack builds its own result.
    broken_gradients: int32 [batch], the number of gradients with a NaN or infinite entry. If there are any, a failed
      attack proves little; a NaN coordinate takes no step. None if the attack does not count them.
    distances: float [batch], the distance of `images` to the clean images in the norm that the attack minimises: 0 if
      the clean image is already adversarial, inf if no adversarial was found, or none within epsilon. None if the
      attack does not minimise a norm.
  """

  images: Images
  surviving_steps: Counts
  success: Answers | None = None
  broken_gradients: Counts | None = None
  distances: PerImage | None = None


def finished(
  logits_fn: LogitsFn,
  labels: Labels,
  images: Images,
  surviving_steps: Counts,
  broken_gradients: Counts | None = None,
  targets: Labels | None = None,
  distances: PerImage | None = None,
) -> AttackResult:
  """An attack's result with its success, and without a gradient. The distance is inf if the attack fails.

  `targets` are those that the user gave, not those of a target rank.
  """
  images = jax.lax.stop_gradient(images)
  success = losses.is_adversarial(logits_fn(images), labels, targets)
  if distances is not None:
    distances = jnp.where(success, distances, jnp.inf)
  return jax.lax.stop_gradient(AttackResult(images, surviving_steps, success, broken_gradients, distances))


def as_threefry(keys: Keys) -> Keys:
  """Keys of JAX's default kind, from keys of any kind.

  With keys of the kinds "rbg" and "unsafe_rbg", which are faster on TPU, `jax.vmap` draws the numbers of the whole
  batch from its first key, so that an image's numbers would depend on its batch.
  """
  if str(jax.random.key_impl(keys)) == _KEY_KIND:
    return keys
  return jax.random.wrap_key_data(jax.random.key_data(keys)[..., :2], impl=_KEY_KIND)


def example_keys(key: OneKey, example_indices: Counts) -> KeyPerImage:
  """One key per image, derived from one key and the images' indices [batch] in their data set.

  An image's key, and so its adversarial, then depends on the image's index, not on its batch. The keys are of JAX's
  default kind, whatever the kind of `key`.
  """
  key = as_threefry(key)
  return jax.vmap(lambda index: jax.random.fold_in(key, index))(example_indices)


def per_image_keys(keys: Keys, images: Images) -> KeyPerImage:
  """Keys [batch]: as given, or a single key split over the batch. Raises ValueError for any other number."""
  _checks.check_key(keys)
  if keys.ndim == 0:
    return example_keys(keys, jnp.arange(images.shape[0]))
  if keys.shape != images.shape[:1]:
    raise ValueError(f"key has shape {keys.shape}; pass one key, or one for each of the {images.shape[0]} images.")
  return as_threefry(keys)


def _scalar(value: Any, name: str, dtype: Any, check: Callable[[float], None]) -> float | Array:
  """Returns a number that passes `check`, or converts a traced scalar to `dtype` without a check of its value."""
  if isinstance(value, jax.core.Tracer):
    if value.shape or not jnp.issubdtype(value.dtype, jnp.number):
      raise ValueError(f"{name} must be one number, not {_checks.kind(value)}.")
    return value.astype(dtype)
  number = arguments_lib.as_number(value, name)
  check(number)
  return number


def _per_norm(values: Any, name: str, dtype: Any, image_shape: tuple[int, ...]) -> dict[str, float | Array]:
  """Checked values by norm: radii of balls if the name is "radii", else step sizes. Raises ValueError."""
  found = {}
  for norm, value in arguments_lib.check_group(values, name).items():
    norm = threat_model.norm_name(norm, name)

    def check(number: float, norm: str = norm) -> None:
      if name == "radii":
        threat_model.check_epsilon(number, norm, image_shape, f"{name}.{norm}")
      else:
        arguments_lib.check_number(number, f"{name}.{norm}", _STEP_SIZES)

    found[norm] = _scalar(value, f"{name}.{norm}", dtype, check)
  return found


def _prepared(value: Any, name: str, form: Any, arguments: dict[str, Any], default: Any) -> Any:
  """Checks an argument and converts it for the attack; see `entry` for `form`."""
  dtype, image_shape = arguments["images"].dtype, arguments["images"].shape[1:]
  if value is default or (name == "epsilon" and isinstance(value, float) and value == default):
    return value
  if name == "epsilon" and form is None:
    norm = arguments.get("norm", "linf")
    return _scalar(value, name, dtype, lambda number: threat_model.check_epsilon(number, norm, image_shape))
  if name in ("radii", "step_sizes"):
    return _per_norm(value, name, dtype, image_shape)
  if name == "targets":
    _checks.check_integers(value, name, arguments["labels"].shape)
    _checks.check_not_labels(value, arguments["labels"])
    return jnp.asarray(value).astype(jnp.int32)
  if name == "label_distributions":
    return _checks.distributions(value, name, arguments["images"].shape[0], dtype)
  if name == "target_rank" and isinstance(value, jax.core.Tracer):
    return value
  if isinstance(form, str):
    return _scalar(value, name, dtype, lambda number: arguments_lib.check_number(number, name, form))
  if isinstance(form, int):
    return arguments_lib.check_count(value, name, form)
  return arguments_lib.check_flag(value, name) if form is bool else value


def as_function(logits_fn: Any) -> LogitsFn:
  """The model as a function of any number of images (`any_batch_size`). Raises ValueError if it is not a function."""
  if any(kind.__module__.startswith("torch.nn.") for kind in type(logits_fn).__mro__):
    raise ValueError(
      "logits_fn is a PyTorch module; it must be a JAX function. lrat_jax.load_model makes one from its weights file."
    )
  found = microbatch.any_batch_size(logits_fn)
  if not callable(found):
    raise ValueError(f"logits_fn must be a function of images, not {_checks.kind(logits_fn)}.")
  return found


def ask(given: Any, computed: Any, logits_fn: LogitsFn, points: Array, *keys: Array) -> Array:
  """Evaluates the model on the points, converted to the type `given`. Returns logits of the type `computed`.

  If this is compiled for CPU, the model's convolutions are replaced by faster ones (`rewrite.rewritten`).

  Raises:
    ValueError: the model does not return logits, or fails with an error that has a hint (`user_code.hint`).
  """
  points = points.astype(given)
  # A copy, because the user's function may be a jit that donates its argument. Inside another jit nothing is donated.
  traced = isinstance(points, jax.core.Tracer)
  points = points if traced else jnp.array(points)

  def answer(points: Array, *keys: Array) -> Array:
    logits = logits_fn(points, *keys)
    _checks.check_shape(logits, points.shape[0])
    return jnp.asarray(logits).astype(computed)

  try:
    return (rewrite.rewritten(answer) if traced else answer)(points, *keys)
  except Exception as error:  # for known mistakes, our one line is clearer than the user's traceback
    if user_code.hint(error):
      raise ValueError(f"logits_fn failed ({user_code.reason(error)}).") from error
    raise


def computed_type(given: Any) -> Any:
  """The type in which attacks compute for images of the given type: float32 or wider."""
  return given if jnp.finfo(given).bits >= 32 else jnp.dtype(jnp.float32)


def _begin(arguments: dict[str, Any]) -> dict[str, Any]:
  """The four arguments that all attacks take, checked and converted."""
  _checks.check_batch(arguments["images"], arguments["labels"])
  logits_fn = as_function(arguments["logits_fn"])
  images, labels = jnp.asarray(arguments["images"]), arguments["labels"]
  if (host_images := _checks.on_host(images)) is not None:
    _checks.check_range(host_images)
    images = jnp.clip(images, 0, 1)
  computed = computed_type(images.dtype)
  keys = per_image_keys(arguments["key"], images)
  return {
    "key": keys,
    "logits_fn": functools.partial(ask, images.dtype, computed, logits_fn),
    "images": images.astype(computed),
    "labels": jnp.asarray(labels).astype(jnp.int32),
  }


def _rounded(result: AttackResult, given: Any, arguments: dict[str, Any]) -> AttackResult:
  """The result of an attack on 16-bit images, with images of that type, and success and distances for these."""
  images = threat_model.rounded(result.images, arguments["images"], given)
  keys = [arguments["key"]] if arguments.get("eot_iter") else []
  logits = arguments["logits_fn"](images.astype(result.images.dtype), *keys)
  success = losses.is_adversarial(logits, arguments["labels"], arguments.get("targets"))
  distances = result.distances
  if distances is not None:
    distances = jnp.where(success, distances, jnp.inf)
  return jax.lax.stop_gradient(result._replace(images=images, success=success, distances=distances))


def _check_not_left_out(targets: np.ndarray, logits: np.ndarray) -> None:
  """Raises ValueError, with the image's index, if the model excludes a target [batch] by a logit of -inf."""
  out = np.flatnonzero(np.isneginf(np.asarray(logits, np.float64)[np.arange(len(targets)), targets]))
  if out.size:
    raise ValueError(f"targets[{out[0]}]={targets[out[0]]} is a class that the model leaves out: its logit is -inf.")


def _check_clean(arguments: dict[str, Any]) -> None:
  """Evaluates the model on the clean images, if their values are known. Raises ValueError for invalid logits."""
  images, labels = arguments["images"], _checks.on_host(arguments["labels"])
  if labels is None or isinstance(images, jax.core.Tracer):
    return
  keys = [arguments["key"]] if arguments.get("eot_iter") else []
  logits = _checks.on_host(arguments["logits_fn"](images, *keys))
  if logits is not None:
    _checks.check_logits(logits, labels)
    if (targets := _checks.on_host(arguments.get("targets", labels))) is not None and targets.ndim:
      _checks.check_classes(targets, logits.shape[1], "targets")
      _check_not_left_out(targets, logits)


def entry(**forms: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
  """The decorator of every public attack: checks and converts its arguments, and converts its result.

  The attack receives a key per image, images in float32 or wider, a model that takes and returns this type, `norm` in
  lower case, and Python or traced numbers. A wrong argument raises ValueError with one line that names it.

  Args:
    forms: for each argument after the first four: the minimum of a count, the range of a number such as "(0, 1]", or
      `bool`; for `norm` its choices, by default all of `threat_model.NORMS`. An epsilon without a form is checked
      against the range of the norm. The default value of an argument is always accepted.
  """
  forms = {"step_size": _STEP_SIZES, "norm": tuple(threat_model.NORMS)} | forms

  def decorate(attack: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(attack)

    @functools.wraps(attack)
    def run(*positional: Any, **named: Any) -> Any:
      bound = signature.bind(*positional, **named)
      bound.apply_defaults()
      key, logits_fn, images, labels = list(bound.arguments.values())[:4]
      arguments = _begin({"key": key, "logits_fn": logits_fn, "images": images, "labels": labels})
      options = {name: bound.arguments[name] for name in list(signature.parameters)[4:]}
      options |= options.pop("fields", {})
      if "norm" in options:
        options["norm"] = threat_model.norm_name(options["norm"], choices=forms["norm"])
      known = arguments | options
      for name, value in options.items():
        default = signature.parameters[name].default if name in signature.parameters else None
        options[name] = _prepared(value, name, forms.get(name), known, default)
      _check_clean(arguments | options)
      result = attack(*arguments.values(), **options)
      if not isinstance(result, AttackResult):  # a sanity check, which returns numbers instead
        return result
      given = jax.dtypes.canonicalize_dtype(images.dtype)
      if given.itemsize < 4:
        return _rounded(result, given, arguments | options)
      return result._replace(images=result.images.astype(given))

    return run

  return decorate
