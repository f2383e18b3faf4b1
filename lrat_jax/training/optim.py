"""The optimiser and its schedule: SGD with momentum and coupled weight decay, as in the papers' code, or AdamW."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from lrat_jax.config.default import OPTIMIZERS, SCHEDULES


def schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
  """step -> learning rate, from `config.optimizer`, whose fractions are fractions of `total_steps`.

  "piecewise" multiplies by `decay_rate` at each boundary; "cosine" falls from the peak to 0 after a linear warm-up;
  "one_cycle" rises from 1/25 of the peak to it and falls to 1/10,000 of the initial rate, both along a cosine.
  Raises ValueError, with the choices, for an unknown name.
  """
  peak = config.learning_rate
  if config.schedule == "constant":
    return optax.constant_schedule(peak)
  if config.schedule == "piecewise":
    scales: dict[int, float] = {}
    for fraction in config.boundary_fractions:  # in a short run, two of them may be at the same step
      boundary = round(fraction * total_steps)
      scales[boundary] = scales.get(boundary, 1.0) * config.decay_rate
    return optax.piecewise_constant_schedule(peak, scales)
  if config.schedule == "cosine":
    warmup_steps = min(round(config.warmup * total_steps), total_steps - 1)
    return optax.warmup_cosine_decay_schedule(peak if warmup_steps == 0 else 0.0, peak, warmup_steps, total_steps)
  if config.schedule == "one_cycle":
    rising = min(config.warmup, (total_steps - 1) / total_steps)  # so that the last step falls
    return optax.cosine_onecycle_schedule(total_steps, peak, pct_start=rising)
  raise ValueError(f"optimizer.schedule={config.schedule!r} is unknown; choose from {list(SCHEDULES)}.")


def is_kernel(path: tuple[Any, ...], leaf: jax.Array) -> bool:
  """Whether a parameter is a kernel: one named "kernel", or another matrix that is not named "bias".

  Biases, the scales of norms and layers, and a transformer's tokens, positions and temperatures, which have three axes,
  are not kernels: timm and similar libraries leave them out of weight decay.
  """
  name = getattr(path[-1], "key", "") if path else ""
  return name == "kernel" or (leaf.ndim == 2 and name != "bias")


def _kernels(params: Any) -> Any:
  return jax.tree.map_with_path(is_kernel, params)


def create(config: ConfigDict, total_steps: int) -> optax.GradientTransformation:
  """The optimiser of `config.optimizer`.

  "sgd" adds weight decay to the gradient before the momentum, as PyTorch's SGD does. "adamw" (Loshchilov & Hutter,
  arXiv:1711.05101) adds it to the step, times the learning rate, as PyTorch's AdamW does; its momenta are
  `momentum` and `second_momentum`. Gradients are clipped before either.

  Raises ValueError, with the choices, for an unknown name.
  """
  rate, mask = schedule(config, total_steps), _kernels if config.decay == "kernels" else None
  if config.name == "sgd":
    steps = [
      optax.add_decayed_weights(config.weight_decay, mask),
      optax.sgd(rate, momentum=config.momentum, nesterov=config.nesterov),
    ]
  elif config.name == "adamw":
    momenta = {"b1": config.momentum, "b2": config.second_momentum, "nesterov": config.nesterov}
    steps = [optax.adamw(rate, weight_decay=config.weight_decay, mask=mask, **momenta)]
  else:
    raise ValueError(f"optimizer.name={config.name!r} is unknown; choose from {list(OPTIMIZERS)}.")
  clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
  return optax.chain(*clip, *steps)
