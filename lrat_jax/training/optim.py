"""The optimiser: SGD with momentum and coupled weight decay, as the peers run it, under a schedule."""

import optax
from ml_collections import ConfigDict

from lrat_jax.config.default import SCHEDULES


def schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
  """step -> learning rate, from `config.optimizer`: shares there are of `total_steps`.

  "piecewise" multiplies by `decay_rate` at each boundary; "cosine" falls from the peak to 0 after a linear warm-up;
  "one_cycle" rises from 1/25 of the peak to it and falls to 1/10,000 of that start, both along a cosine.
  Raises ValueError, with the choices, for an unknown name.
  """
  peak = config.learning_rate
  if config.schedule == "constant":
    return optax.constant_schedule(peak)
  if config.schedule == "piecewise":
    return optax.piecewise_constant_schedule(
      peak, {round(b * total_steps): config.decay_rate for b in config.boundary_fractions}
    )
  if config.schedule == "cosine":
    warmup_steps = min(round(config.warmup * total_steps), total_steps - 1)
    return optax.warmup_cosine_decay_schedule(peak if warmup_steps == 0 else 0.0, peak, warmup_steps, total_steps)
  if config.schedule == "one_cycle":
    return optax.cosine_onecycle_schedule(total_steps, peak, pct_start=config.warmup)
  raise ValueError(f"optimizer.schedule={config.schedule!r} is unknown; choose from {list(SCHEDULES)}.")


def create(config: ConfigDict, total_steps: int) -> optax.GradientTransformation:
  """Weight decay on every parameter is added to the gradient before the momentum, as PyTorch's SGD does."""
  return optax.chain(
    optax.add_decayed_weights(config.weight_decay),
    optax.sgd(schedule(config, total_steps), momentum=config.momentum, nesterov=config.nesterov),
  )
