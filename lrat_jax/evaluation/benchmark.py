"""The robust accuracy of any classifier in one call: AutoAttack on images in host memory, with warnings."""

from typing import NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from lrat_jax import attacks, data
from lrat_jax.attacks import threat_model as threat_model_lib
from lrat_jax.core.arguments import as_number, check_choice, check_count
from lrat_jax.core.microbatch import any_batch_size
from lrat_jax.core.typing import HostAnswers, HostImages, HostIntegers, HostPixels, LogitsFn, OneKey
from lrat_jax.evaluation import suite_warnings

# The title of a result, by version. Only a run of all four attacks may be called AutoAttack.
_TITLES = {
  "standard": "AutoAttack",
  "plus": "AutoAttack (plus)",
  "apgd": "APGD-CE + APGD-T, an upper bound on AutoAttack's robust accuracy",
}


class BenchmarkResult(NamedTuple):
  """The result of `benchmark` on n images; `print` shows it as a table.

  Attributes:
    threat_model: "linf", "l2" or "l1".
    epsilon: radius of the ball, in units of the image range.
    version: the version of AutoAttack.
    clean_accuracy, robust_accuracy: shares of n, in [0, 1].
    robust: bool [n], whether the model is right on the clean image and under every attack.
    broken_by: int [n], the attack that broke the image, as an index into `attacks`; -1 if the image is robust.
    attacks: "clean", then the names of the attacks in order.
    per_attack: a `StageSummary` for each attack that ran.
    warnings: lines to read before the number is trusted; usually empty for a healthy model, except with "apgd".
    clean_images: [n, h, w, c], the images as given.
    fallen: int [m], the positions of the images that an attack broke.
    adversarials: float [m, h, w, c], the adversarial images that broke them.
  """

  threat_model: str
  epsilon: float
  version: str
  clean_accuracy: float
  robust_accuracy: float
  robust: HostAnswers
  broken_by: HostIntegers
  attacks: tuple[str, ...]
  per_attack: tuple[attacks.StageSummary, ...]
  warnings: tuple[str, ...]
  clean_images: HostPixels
  fallen: HostIntegers
  adversarials: HostImages

  @property
  def images(self) -> HostImages:
    """Float [n, h, w, c] in [0, 1], the adversarial image that broke the model, otherwise the clean image."""
    return attacks.with_adversarials(self.clean_images, self.fallen, self.adversarials)

  def __str__(self) -> str:
    count = len(self.robust)
    lines = [
      f"{_TITLES[self.version]}, {self.threat_model}, epsilon {self.epsilon:.4g}, {count:,} images",
      f"{'':14}{'accuracy':>9}{'attacked':>10}{'broken':>8}{'seconds':>9}",
      f"{'clean':14}{100 * self.clean_accuracy:8.2f}%",
    ]
    for stage in self.per_attack:
      share = f"{100 * stage.robust_accuracy:8.2f}%"
      lines.append(f"{stage.name:14}{share}{stage.attacked:10,}{stage.broken:8,}{stage.seconds:9.1f}")
    lines.append(f"{'robust':14}{100 * self.robust_accuracy:8.2f}%")
    return "\n".join([*lines, *(f"warning: {line}" for line in self.warnings)])


def benchmark(
  logits_fn: LogitsFn,
  images: HostPixels,
  labels: HostIntegers,
  *,
  threat_model: str = "linf",
  epsilon: float = 8 / 255,
  version: str = "standard",
  key: OneKey | None = None,
  batch_size: int = 256,
  num_sanity_examples: int = 64,
) -> BenchmarkResult:
  """Evaluates a classifier with AutoAttack (Croce & Hein, arXiv:2003.01690).

  `attacks.autoattack` has more options, and can resume.

  Args:
    logits_fn: images [batch, h, w, c] in [0, 1] -> logits [batch, classes], normalization inside. Wrap large
      parameters as `jax.tree_util.Partial(apply, variables)`, or they are compiled in as constants.
    images: uint8, or float in [0, 1], [n, h, w, c], in host memory.
    labels: int [n].
    threat_model: "Linf", "L2" or "L1", in upper or lower case.
    epsilon: radius of the ball, in units of the image range; 8/255 is the usual one for Linf on CIFAR-10.
    version: "standard" (APGD-CE, APGD-T, FAB-T, Square), "plus", or "apgd" (only the first two, an upper bound).
    key: a typed key; by default `jax.random.key(0)`. The same key gives the same result.
    batch_size: images on all devices together. Changes no result.
    num_sanity_examples: number of images for the sanity checks, which look for signs of a misleading number; 0: none.

  Returns:
    BenchmarkResult.

  Raises:
    ValueError: an argument outside what is listed here; the message gives the argument and its value.
    MemoryError: a device's memory is too small for even a chunk of the images; give a smaller `batch_size`.
  """
  check_choice(version, "version", tuple(_TITLES))
  norm = threat_model_lib.norm_name(threat_model, "threat_model")
  check_count(num_sanity_examples, "num_sanity_examples", 0)
  epsilon = as_number(epsilon, "epsilon")
  report = attacks.autoattack(
    jax.random.key(0) if key is None else key,
    logits_fn,
    images,
    labels,
    epsilon=epsilon,
    norm=norm,
    version=version,
    batch_size=batch_size,
  )
  return BenchmarkResult(
    threat_model=norm,
    epsilon=epsilon,
    version=version,
    clean_accuracy=report.clean_accuracy,
    robust_accuracy=report.robust_accuracy,
    robust=report.robust,
    broken_by=report.broken_by,
    attacks=report.stages,
    per_attack=report.per_attack,
    warnings=_warnings(
      Partial(any_batch_size(logits_fn)),
      np.asarray(report.clean_images),
      np.asarray(labels),
      report,
      norm,
      epsilon,
      num_sanity_examples,
    ),
    clean_images=report.clean_images,
    fallen=report.fallen,
    adversarials=report.adversarials,
  )


def _warnings(
  logits_fn: Partial, images: np.ndarray, labels: np.ndarray, report: attacks.AutoAttackReport, norm, epsilon, most
) -> tuple[str, ...]:
  rows = np.arange(min(most, len(labels)))
  split = data.Split(images[rows], labels[rows].astype(np.int32), rows.astype(np.int32))
  suite = {"autoattack": {"name": "autoattack", "norm": norm, "epsilon": epsilon}}
  lines = suite_warnings.warnings(logits_fn, split, suite, {"autoattack": report})
  return tuple(line.removeprefix("autoattack: ") for line in lines)
