"""Results of attacks on many images: AutoAttack's report, and robust accuracy as a function of the radius."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lrat_jax.attacks.stages import StageSummary
from lrat_jax.core.typing import (
  HostAnswers,
  HostFloats,
  HostImages,
  HostIntegers,
  HostPixels,
  NumpyImages,
  NumpyIntegers,
  PerImage,
)


def as_floats(images: HostPixels) -> NumpyImages:
  """Bytes (uint8) as float32 in [0, 1]; other images unchanged."""
  images = np.asarray(images)
  return images / np.float32(255) if images.dtype == np.uint8 else images


def with_adversarials(clean_images: HostPixels, fallen: HostIntegers, adversarials: HostImages) -> NumpyImages:
  """The images [n, h, w, c] with those at `fallen` [m] replaced by `adversarials` [m, h, w, c], in their dtype."""
  images = as_floats(clean_images).astype(adversarials.dtype)  # a copy
  images[np.asarray(fallen)] = adversarials
  return images


def robust_accuracy_curve(distances: HostFloats | PerImage, epsilons: Sequence[float] | HostFloats) -> HostFloats:
  """Robust accuracy at every radius at once, from the distances of one minimum-norm attack.

  An image is robust at epsilon if its distance is larger than epsilon: an adversarial at exactly epsilon is inside
  the ball, as for every attack here. Distances and radii are compared in the distances' dtype. The curve is exact for
  the adversarials found; as for any attack, it is an upper bound on the model's robust accuracy.

  Args:
    distances: [n], `AttackResult.distances` of an attack with epsilon=inf: 0 if the model is wrong on the clean image,
      inf if no adversarial was found.
    epsilons: [m] radii of 0 or more, in any order.

  Returns:
    float [m], shares in [0, 1]; the clean accuracy at radius 0.

  Raises:
    ValueError: no distances, or a distance or radius that is negative or NaN.
  """
  found = np.asarray(distances)
  radii = np.asarray(epsilons, dtype=found.dtype)
  if found.ndim != 1 or not found.size or not (found >= 0).all():
    raise ValueError("distances must be a non-empty list of numbers of 0 or more, one per image.")
  if radii.ndim != 1 or not (radii >= 0).all():
    raise ValueError("epsilons must be a list of numbers of 0 or more.")
  return 1.0 - np.searchsorted(np.sort(found[np.isfinite(found)]), radii, side="right") / len(found)


class AutoAttackReport(NamedTuple):
  """The result of `autoattack` on n images.

  Attributes:
    robust: bool [n], whether the model is right on the clean image and under every attack.
    robust_accuracy, clean_accuracy: shares of n, in [0, 1].
    broken_by: int [n], the index in `stages` of the stage that broke the image; -1 if none did.
    stages: "clean", then the stages' names.
    distances: float [n], norm of the difference to the clean image.
    per_attack: a `StageSummary` for each stage that ran; when no images are left, no further stage runs.
    warnings: lines to read before you trust the robust accuracy.
    clean_images: [n, h, w, c], as given.
    fallen: int [m], the positions of the images that an attack broke.
    adversarials: float [m, h, w, c], their adversarials; of the dtype given, or float32 for bytes.
  """

  robust: HostAnswers
  robust_accuracy: float
  clean_accuracy: float
  broken_by: NumpyIntegers
  stages: tuple[str, ...]
  distances: HostFloats
  per_attack: tuple[StageSummary, ...]
  warnings: tuple[str, ...]
  clean_images: HostPixels
  fallen: NumpyIntegers
  adversarials: NumpyImages

  @property
  def images(self) -> NumpyImages:
    """Float [n, h, w, c], the adversarial that broke an image, else the clean image; computed at each access."""
    return with_adversarials(self.clean_images, self.fallen, self.adversarials)
