"""The kinds of `unforeseen`: for each a latent, a decoder, the ball of the latent, and usual strengths.

A decoder takes an image [h, w, c], a latent and random draws, and is the identity where the latent is 0.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lrat_jax.attacks import _colours, _overlays, _warps, threat_model
from lrat_jax.attacks._jpeg import from_coefficients, num_coefficients
from lrat_jax.core.arguments import check_number

# The largest latent of a JPEG coefficient in "jpeg_l1", as in the original.
_MOST_COEFFICIENT = 2.0


class Ball(NamedTuple):
  """The set of allowed latents: within epsilon in a norm, and each entry between `low` and `high`.

  Attributes:
    norm: "linf", "l2" or "l1".
    towards_vertices: whether steps are Frank-Wolfe steps, towards vertices of the ball, instead of along the gradient.
    starts_above: whether random latents have no negative entries; if `low` is 0 or more, they have none in any case.
  """

  norm: str = "linf"
  low: float = -math.inf
  high: float = math.inf
  towards_vertices: bool = False
  starts_above: bool = False

  def project(self, latent: Array, epsilon: float | Array) -> Array:
    """The latent [batch, ...] projected on the ball."""
    return jnp.clip(threat_model.get_norm(self.norm).shrink(latent, epsilon), self.low, self.high)

  def sample(self, keys: Array, shape: tuple[int, ...], epsilon: float | Array) -> Array:
    """Random latents [batch, *shape] in the ball, one per key."""
    norm = threat_model.get_norm(self.norm)
    drawn = jax.vmap(lambda key: norm.sample(key, shape))(keys)
    above = self.starts_above or self.low >= 0
    return self.project(epsilon * (jnp.abs(drawn) if above else drawn), epsilon)

  def advance(
    self, step: Array, latent: Array, gradient: Array, epsilon: float | Array, step_size: float | Array
  ) -> Array:
    """The latent [batch, ...] after step number `step`, from 0, of ascent along the gradient."""
    if self.towards_vertices:
      return latent + (_vertex(gradient, epsilon, self.high) - latent) / (step + 1)
    direction = threat_model.get_norm(self.norm).steepest(gradient)
    return self.project(latent + step_size * direction, epsilon)


def _vertex(gradient: Array, epsilon: float | Array, most: float) -> Array:
  """The point of the L1 ball within +-most where a linear function is largest: the steepest entries at their limit."""
  flat = gradient.reshape(gradient.shape[0], -1)
  rank = jnp.argsort(jnp.argsort(-jnp.abs(flat), axis=1), axis=1).astype(flat.dtype)
  return (jnp.sign(flat) * jnp.clip(epsilon - most * rank, 0, most)).reshape(gradient.shape)


class Kind(NamedTuple):
  """One kind of attack.

  Attributes:
    shape: shape of an image [h, w, c] -> shape of its latent.
    decode: (image [h, w, c], latent, drawn) -> the attacked image, before it is clipped to [0, 1].
    ball: the ball of the latent.
    strengths: radii that its reference uses on CIFAR-10, in increasing order.
    largest: the largest radius that is allowed, far above useful ones.
    draw: (key, image shape) -> the decoder's random draws, made once per run.
    channels: the numbers of channels that images may have; None for any.
  """

  shape: Callable[[tuple[int, ...]], tuple[int, ...]]
  decode: Callable[[Array, Array, Any], Array]
  ball: Ball
  strengths: tuple[float, ...]
  largest: float
  draw: Callable[[Array, tuple[int, ...]], Any] = lambda key, image_shape: None
  channels: tuple[int, ...] | None = None


def _levels(largest: float) -> tuple[float, ...]:
  """MultiRobustBench's twenty strengths."""
  return tuple(round(largest * level / 20, 6) for level in range(1, 21))


def _flow_shape(image_shape: tuple[int, ...]) -> tuple[int, ...]:
  return (*image_shape[:2], 2)


def _coefficient_shape(image_shape: tuple[int, ...]) -> tuple[int, ...]:
  return (num_coefficients(image_shape),)


def _jpeg(image: Array, coefficients: Array, drawn: None) -> Array:
  # Halved, as in the original, which rounds coefficients up or down by half a latent.
  return image + from_coefficients(0.5 * coefficients, image.shape)


# MultiRobustBench (2023, its cifar10_eval_config.yml) has twenty strengths for the first five, Kaufmann et al. three
# for the others (arXiv:1908.08016v3, their cifar10_config.py: low, medium and high).
KINDS: dict[str, Kind] = {
  "stadv": Kind(_flow_shape, _warps.stadv, Ball(), _levels(0.1), 2.0),
  "elastic": Kind(_flow_shape, _warps.elastic, Ball(), _levels(1.0), 1e3),
  "recolor": Kind(_colours.grid_shape, _colours.recolor, Ball(), _levels(0.1), 1.0, channels=_colours.CHANNELS),
  "jpeg_linf": Kind(_coefficient_shape, _jpeg, Ball(), _levels(0.2), 1e3),
  "jpeg_l1": Kind(
    _coefficient_shape, _jpeg, Ball("l1", -_MOST_COEFFICIENT, _MOST_COEFFICIENT, True), _levels(20.0), 1e6
  ),
  "hsv": Kind(lambda shape: shape, _colours.hsv, Ball(), (0.01, 0.02, 0.03), 1.0, channels=_colours.CHANNELS),
  "pixel": Kind(_overlays.coarse_shape, _overlays.pixel, Ball("l2", 0.0, 1.0), (1.0, 5.0, 10.0), 1e3),
  "gabor": Kind(lambda shape: shape, _overlays.gabor, Ball(), (0.02, 0.03, 0.04), 1e2, _overlays.draw_gabor),
  # The density of fog is the absolute value of its field: ascent from fields of mixed signs ends with zeros in between.
  "fog": Kind(_overlays.fog_shape, _overlays.fog, Ball(starts_above=True), (0.3, 0.4, 0.5), 1e3),
  "glitch": Kind(lambda shape: (_warps.num_bars(shape[0]), shape[2]), _warps.glitch, Ball(), (0.03, 0.05, 0.1), 2.0),
}


def check(kind: str, epsilon: float | Array, image_shape: tuple[int, ...]) -> None:
  """Raises ValueError for a radius above `largest`, unless it is traced, and for images that a kind cannot take."""
  if not isinstance(epsilon, jax.core.Tracer):
    check_number(float(epsilon), "epsilon", f"[0, {KINDS[kind].largest:g}]")
  channels = KINDS[kind].channels
  if channels is not None and image_shape[-1] not in channels:
    raise ValueError(f"kind={kind!r} takes images of {channels[0]} or {channels[1]} channels, not {image_shape[-1]}.")
