"""Common corruptions at five severities: noise, blur, weather and digital corruptions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from lrat_jax.attacks import losses
from lrat_jax.attacks._entry import AttackResult, entry, finished
from lrat_jax.attacks.corruptions import _blur, _digital, _noise, _spatter, _weather
from lrat_jax.core.arguments import check_choice
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn

SEVERITIES = 5

# kind -> ((key, image [h, w, c], strength) -> image, its strength at severities 1..5), with the values of CIFAR-10-C.
KINDS: dict[str, tuple[Callable[..., Array], tuple]] = {
  "gaussian_noise": (_noise.gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
  "shot_noise": (_noise.shot_noise, (500, 250, 100, 75, 50)),
  "impulse_noise": (_noise.impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
  "defocus_blur": (_blur.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
  "glass_blur": (_blur.glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
  "motion_blur": (_blur.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
  "zoom_blur": (_blur.zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
  "snow": (
    _weather.snow,
    (
      (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
      (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
      (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
      (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
      (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
  ),
  "frost": (_weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
  "fog": (_weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
  "brightness": (_weather.brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
  "contrast": (_digital.contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
  "elastic_transform": (
    _digital.elastic_transform,
    ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
  ),
  "pixelate": (_digital.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
  "jpeg_compression": (_digital.jpeg_compression, (80, 65, 58, 50, 40)),
  # Extra kinds, besides the fifteen that are averaged.
  "speckle_noise": (_noise.speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
  "spatter": (
    _spatter.spatter,
    (
      (0.62, 0.1, 0.7, 0.7, 0.5, False),
      (0.65, 0.1, 0.8, 0.7, 0.5, False),
      (0.65, 0.3, 1, 0.69, 0.5, False),
      (0.65, 0.1, 0.7, 0.69, 0.6, True),
      (0.65, 0.1, 0.5, 0.68, 0.6, True),
    ),
  ),
  "gaussian_blur": (_blur.gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
  "saturate": (_digital.saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}
CORRUPTIONS = tuple(KINDS)
# The kinds over which the mean corruption accuracy is taken.
STANDARD = CORRUPTIONS[:15]


def _check_shape(kind: str, shape: tuple[int, ...]) -> None:
  """Raises ValueError for images [h, w, c] to which a kind cannot be applied as intended."""
  if kind == "saturate" and shape[-1] != 3:
    raise ValueError(f"kind='saturate' needs colours: three channels, not {shape[-1]}.")
  if kind == "elastic_transform" and min(shape[:2]) < 3:
    raise ValueError(f"kind='elastic_transform' needs images of at least 3 x 3 pixels, not {shape[0]} x {shape[1]}.")


@entry(severity=1)
def corruption(
  key: Keys, logits_fn: LogitsFn, images: Images, labels: Labels, *, kind: str, severity: int
) -> AttackResult:
  """A common corruption (Hendrycks & Dietterich, arXiv:1903.12261), with the strengths of CIFAR-10-C.

  It does not depend on the model, so it may also make a wrong prediction right. Lengths are in pixels for any image
  size, except for "elastic_transform", where they are shares of the shorter side. "zoom_blur" enlarges to whole pixels,
  so at severity 1 it does not change images of 8 x 8 pixels or fewer. Only the snow layer is rounded to bytes. "frost"
  has a texture instead of the original's photographs, and is not comparable with it.

  Args:
    key: a typed key or one per image [batch]; noise, glass and motion blur, snow, frost, fog, "spatter" and
      "elastic_transform" draw from it.
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    kind: one of `CORRUPTIONS`.
    severity: 1 (mild) to 5.

  Returns:
    AttackResult: the corrupted images in [0, 1]; `surviving_steps` is 1 where the model is right on the clean image.

  Raises:
    ValueError: an unknown kind, a severity outside 1..5, "saturate" without three channels, or "elastic_transform" of
      fewer than 3 x 3 pixels.
  """
  check_choice(kind, "kind", CORRUPTIONS)
  if severity > SEVERITIES:
    raise ValueError(f"severity={severity} is outside 1..{SEVERITIES}.")
  _check_shape(kind, images.shape[1:])
  corrupt, strengths = KINDS[kind]
  corrupted = jax.vmap(lambda key, image: corrupt(key, image, strengths[severity - 1]))(key, images)
  right = losses.is_correct(logits_fn(images), labels)
  return finished(logits_fn, labels, jnp.clip(corrupted, 0.0, 1.0), right.astype(jnp.int32))
