"""Phases of training: which weights and perturbations are on in an epoch. Each begins after a fraction of training."""

from typing import NamedTuple

from ml_collections import ConfigDict

from lrat_jax import objectives, reweighting


class Phase(NamedTuple):
  """What is on. Each phase has a compiled step of its own, so plain training does not pay for the others.

  Attributes:
    use_local_weights: local weights distribute each pair's weight; if False, the variants share it evenly.
    use_global_weights: global weights differ between pairs; if False, they are 1.
    use_awp: the gradient is computed at adversarially perturbed weights (`awp.perturbed`).
  """

  use_local_weights: bool
  use_global_weights: bool
  use_awp: bool = False


def phase_at(config: ConfigDict, epoch: int) -> Phase:
  """The phase of an epoch (0-based): each part begins after its fraction of the epochs."""
  done = epoch / config.train.epochs
  return Phase(
    use_local_weights=config.local_weights.kind != "none" and done >= config.local_weights.begin_fraction,
    use_global_weights=config.global_weights.kind != "none" and done >= config.global_weights.begin_fraction,
    use_awp=config.awp.gamma > 0 and done >= config.awp.begin_fraction,
  )


def phase_text(phase: Phase) -> str:
  """The active parts of a phase, in words."""
  on = [name.removeprefix("use_").replace("_", " ") for name, active in phase._asdict().items() if active]
  return ", ".join(on) or "plain"


def needs_natural(config: ConfigDict, phase: Phase) -> bool:
  """Whether the loss needs the model's prediction on the natural images."""
  weighed = phase.use_local_weights and reweighting.weighs_natural(config.local_weights.kind)
  return weighed or objectives.compares_with_natural(config.objective)
