"""Common corruptions: noise, blur, brightness, contrast, pixelation and JPEG at five severities."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import ndimage

from lrat_jax.attacks import losses
from lrat_jax.attacks._entry import AttackResult, entry, finished
from lrat_jax.attacks._jpeg import jpeg
from lrat_jax.core.arguments import check_choice
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn


def _gaussian_noise(keys: Array, images: Array, deviation: float) -> Array:
  return images + deviation * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys)


def _impulse_noise(keys: Array, images: Array, share: float) -> Array:
  """Each value becomes 0 or 1 with that probability, one as likely as the other."""
  draws = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(keys)
  return jnp.where(draws < share / 2, 0.0, jnp.where(draws < share, 1.0, images))


def _along_both(images: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
  """Linear maps of the rows and of the columns, each [out, in]."""
  return jnp.einsum("ih,jw,bhwc->bijc", rows.astype(np.float32), columns.astype(np.float32), images)


def _gaussian_blur(keys: Array, images: Array, deviation: float) -> Array:
  # A linear map is what it makes of the unit vectors; the image's edge values continue beyond it.
  along = lambda size: ndimage.gaussian_filter1d(np.eye(size), deviation, axis=0, mode="nearest")
  return _along_both(images, along(images.shape[1]), along(images.shape[2]))


def _brightness(keys: Array, images: Array, amount: float) -> Array:
  """Raises the largest channel (the value in HSV), the others in proportion; black becomes grey."""
  value = jnp.max(images, axis=-1, keepdims=True)
  raised = jnp.minimum(value + amount, 1.0)
  return jnp.where(value > 0, images * raised / jnp.where(value > 0, value, 1.0), raised)


def _contrast(keys: Array, images: Array, factor: float) -> Array:
  means = jnp.mean(images, axis=(1, 2), keepdims=True)
  return (images - means) * factor + means


def _box_matrix(size_in: int, size_out: int) -> np.ndarray:
  """Each output is the mean of the input pixels whose middles lie in its box. [size_out, size_in]."""
  scale = size_in / size_out
  distances = np.arange(size_in) + 0.5 - (np.arange(size_out)[:, None] + 0.5) * scale
  half = 0.5 * max(scale, 1.0)
  inside = (distances > -half) & (distances <= half)
  return inside / inside.sum(axis=1, keepdims=True)


def _pixelate(keys: Array, images: Array, share: float) -> Array:
  """Down to that share of each side and up again."""
  matrices = []
  for size in images.shape[1:3]:
    small = max(int(size * share), 1)
    matrices.append(_box_matrix(small, size) @ _box_matrix(size, small))
  return _along_both(images, *matrices)


# kind -> (function, its strength at severities 1..5), the values of CIFAR-10-C.
_KINDS: dict[str, tuple[Callable[..., Array], tuple]] = {
  "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
  "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
  "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
  "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
  "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
  "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
  "jpeg": (lambda keys, images, quality: jpeg(images, quality), (80, 65, 58, 50, 40)),
}
CORRUPTIONS = tuple(_KINDS)


@entry(severity=1)
def corruption(
  key: Keys, logits_fn: LogitsFn, images: Images, labels: Labels, *, kind: str, severity: int
) -> AttackResult:
  """A common corruption (Hendrycks & Dietterich, arXiv:1903.12261), of the strengths of CIFAR-10-C.

  What it does to an image does not depend on the model, so it may also mend one that the model gets wrong.

  Args:
    key: a typed key or one per image [batch]; only the two kinds of noise draw from it.
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    kind: "gaussian_noise", "impulse_noise", "gaussian_blur", "brightness", "contrast", "pixelate" or "jpeg".
    severity: 1 (mild) to 5.

  Returns:
    AttackResult: the corrupted images in [0, 1]; `surviving_steps` is 1 where the model is right on the clean image.

  Raises:
    ValueError: an unknown kind or a severity outside 1..5.
  """
  check_choice(kind, "kind", CORRUPTIONS)
  if severity > 5:
    raise ValueError(f"severity={severity} is outside 1..5.")
  corrupt, strengths = _KINDS[kind]
  corrupted = jnp.clip(corrupt(key, images, strengths[severity - 1]), 0.0, 1.0)
  right = losses.is_correct(logits_fn(images), labels)
  return finished(logits_fn, labels, corrupted, right.astype(jnp.int32))
