"""What AutoAttack returns: a verdict on every image, and the adversarials of those that fell."""

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
)


def as_floats(images: HostPixels) -> NumpyImages:
  """Bytes as float32 in [0, 1], others as they are."""
  images = np.asarray(images)
  return images / np.float32(255) if images.dtype == np.uint8 else images


def with_adversarials(clean_images: HostPixels, fallen: HostIntegers, adversarials: HostImages) -> NumpyImages:
  """The images [n, h, w, c] with those at `fallen` [m] replaced by `adversarials` [m, h, w, c], in their type."""
  images = as_floats(clean_images).astype(adversarials.dtype)  # a copy
  images[np.asarray(fallen)] = adversarials
  return images


class AutoAttackReport(NamedTuple):
  """The result of `autoattack` on n images.

  Attributes:
    robust: bool [n], right on the clean image and under every attack.
    robust_accuracy, clean_accuracy: shares of n, in [0, 1].
    broken_by: int [n], an index into `stages`: which broke the image; -1 where none did.
    stages: "clean", then the stages' names.
    distances: float [n], norm of the difference to the clean image.
    per_attack: a `StageSummary` for each stage that ran; none runs on an empty rest.
    warnings: lines to read before the number is believed.
    clean_images: [n, h, w, c], those given.
    fallen: int [m], the places of the images that an attack broke.
    adversarials: float [m, h, w, c], what broke them; of the type given, or float32 for bytes.
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
    """Float [n, h, w, c], the adversarial that broke an image, else the clean image; made when it is asked for."""
    return with_adversarials(self.clean_images, self.fallen, self.adversarials)
