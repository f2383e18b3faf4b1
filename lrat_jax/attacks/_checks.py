"""Checks of the inputs of an attack and the outputs of a model: keys, images, labels and logits.

All raise ValueError with one line that names the argument. Values are checked only if they are known, not if traced.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrat_jax.core import arguments as arguments_lib
from lrat_jax.core.typing import Images, Labels

_FEWEST_CLASSES = 2
# Tolerance for the sum of a distribution, wide enough for half precision.
_SUM_ROUNDING = 1e-2


def kind(value: Any) -> str:
  """A short description of a value for messages: its dtype and shape, or its type."""
  is_array = isinstance(value, np.ndarray | jax.Array)
  return f"{value.dtype} of shape {value.shape}" if is_array else type(value).__name__


def check_key(key: Any) -> None:
  """Raises ValueError unless the value is a typed key or an array of typed keys."""
  if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    raise ValueError(f"key must be a typed key, as made by jax.random.key, not {kind(key)}.")


def check_one_key(key: Any) -> None:
  """Raises ValueError unless the value is a single typed key."""
  check_key(key)
  if key.ndim:
    raise ValueError(f"key has shape {key.shape}; pass a single key, from which each image's key is derived.")


def check_batch(images: Images, labels: Labels, *, bytes_too: bool = False) -> None:
  """Raises ValueError unless these are images [batch, h, w, c] with integer labels [batch]."""
  is_array = isinstance(images, np.ndarray | jax.Array)
  allowed = is_array and (jnp.issubdtype(images.dtype, jnp.floating) or (bytes_too and images.dtype == np.uint8))
  if not allowed or images.ndim != 4:
    kinds = "uint8, or float" if bytes_too else "float"
    raise ValueError(f"images must be {kinds} [batch, h, w, c] in [0, 1], not {kind(images)}.")
  if not images.size:
    raise ValueError(f"images is empty, of shape {images.shape}; pass at least one image.")
  arguments_lib.warn_of_layout(images.shape)
  check_integers(labels, "labels", images.shape[:1])


def check_integers(values: Any, name: str, shape: tuple[int, ...]) -> None:
  """Raises ValueError unless the values are an integer array of that shape, one for each image."""
  is_array = isinstance(values, np.ndarray | jax.Array)
  if not is_array or values.shape != shape or not jnp.issubdtype(values.dtype, jnp.integer):
    raise ValueError(f"{name} must be integers of shape {shape}, one per image, not {kind(values)}.")


def distributions(values: Any, name: str, batch: int, dtype: Any) -> Array:
  """Checks labels that are distributions, float [batch, classes], and converts them to `dtype`. Raises ValueError."""
  is_array = isinstance(values, np.ndarray | jax.Array)
  if not is_array or values.ndim != 2 or len(values) != batch or not jnp.issubdtype(values.dtype, jnp.floating):
    raise ValueError(f"{name} must be floats of shape ({batch}, classes), a row per image, not {kind(values)}.")
  if (known := on_host(values)) is not None:
    known = known.astype(np.float64)
    wrong = np.flatnonzero(~((known >= 0).all(axis=1) & (np.abs(known.sum(axis=1) - 1) <= _SUM_ROUNDING)))
    if wrong.size:
      raise ValueError(f"{name}[{wrong[0]}] is not a distribution: its entries must be 0 or more and sum to 1.")
  return jnp.asarray(values).astype(dtype)


def on_host(values: Any) -> np.ndarray | None:
  """The values in host memory; None if they are traced, or not all on this host."""
  known = not isinstance(values, jax.core.Tracer) and getattr(values, "is_fully_addressable", True)
  return np.asarray(values) if known else None


def host_array(values: Any, name: str) -> np.ndarray:
  """Anything that NumPy can convert, as an array in host memory. Raises ValueError with the name."""
  try:
    return np.asarray(values)
  except Exception:  # ragged lists, traced values, and any exception of a foreign type
    raise ValueError(f"{name} must be an array, not {kind(values)}.") from None


def check_range(images: np.ndarray) -> None:
  """Raises ValueError if images are outside [0, 1] by more than rounding, or NaN."""
  low, high = float(images.min()), float(images.max())
  if not (low >= -arguments_lib.ROUNDING and high <= 1 + arguments_lib.ROUNDING):  # also true if a value is NaN
    raise ValueError(f"images must be in [0, 1], but are in [{low:.8g}, {high:.8g}].")


def host_data(images: Any, labels: Any, indices: Any | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Checked images (uint8 or a float type of JAX), labels and indices (by default 0 to n - 1), in host memory."""
  images, labels = host_array(images, "images"), host_array(labels, "labels")
  check_batch(images, labels, bytes_too=True)
  if images.dtype != np.uint8:
    check_range(images)
    dtype = jax.dtypes.canonicalize_dtype(images.dtype)
    images = np.clip(images, 0, 1).astype(dtype)  # clip alone converts bfloat16 to float32
  indices = np.arange(len(labels)) if indices is None else host_array(indices, "example_indices")
  check_integers(indices, "example_indices", labels.shape)
  return images, labels.astype(np.int32), indices.astype(np.int32)


def check_classes(classes: np.ndarray, num_classes: int, name: str = "labels", first: int = 0) -> None:
  """Raises ValueError if a label [n] is outside [0, num_classes). `first` is the index of the first label's image."""
  outside = np.flatnonzero((classes < 0) | (classes >= num_classes))
  if len(outside):
    place, label = first + outside[0], classes[outside[0]]
    raise ValueError(
      f"{name}[{place}]={label} is not a class: logits_fn returns {num_classes} classes, 0 to {num_classes - 1}."
    )


def check_not_labels(targets: Any, labels: Any) -> None:
  """Raises ValueError, with the image's index, if a target [batch] is the image's label. Skips traced values."""
  targets, labels = on_host(targets), on_host(labels)
  if targets is not None and labels is not None and (same := np.flatnonzero(targets == labels)).size:
    place = same[0]
    raise ValueError(f"targets[{place}]={targets[place]} is the image's label; choose another class.")


def check_shape(logits: Any, batch: int) -> None:
  """Raises ValueError unless these are float logits [batch, classes], traced or not."""
  found = kind(logits)
  if not isinstance(logits, np.ndarray | jax.Array):
    raise ValueError(f"logits_fn returns {found}; it must return an array of logits [batch, classes].")
  fits = len(logits.shape) == 2 and logits.shape[0] == batch and jnp.issubdtype(logits.dtype, jnp.floating)
  if not fits or logits.shape[1] < _FEWEST_CLASSES:
    raise ValueError(
      f"logits_fn returns {found} for a batch of {batch}; it must return float logits [batch, classes] for "
      f"at least {_FEWEST_CLASSES} classes."
    )


def check_logits(logits: Any, labels: np.ndarray, first: int = 0) -> None:
  """Checks logits [batch, classes] against labels [batch]. `first` is the index of the first image.

  A logit of -inf means that the model excludes the class, which is allowed unless it is the image's label.

  Raises:
    ValueError: another shape, or, with the image's index, a label that is not a class or has a logit of -inf, a logit
      of NaN or inf, or fewer than two finite logits.
  """
  check_shape(logits, len(labels))
  check_classes(labels, logits.shape[1], first=first)
  logits = np.asarray(logits, np.float64)
  for bad, what in (
    (np.isnan(logits).any(axis=1), "are NaN"),
    (np.isposinf(logits).any(axis=1), "are infinite"),
    (np.isneginf(logits[np.arange(len(labels)), labels]), "are -inf for its label"),
    (np.isfinite(logits).sum(axis=1) < _FEWEST_CLASSES, f"are finite for fewer than {_FEWEST_CLASSES} classes"),
  ):
    if bad.any():
      where = f"image {first + np.flatnonzero(bad)[0]} ({bad.sum()} in all)"
      raise ValueError(f"logits_fn returns invalid logits for {where}: they {what}.")
