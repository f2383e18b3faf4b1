"""The threat model: the epsilon ball of a norm, intersected with the image range [0, 1].

Norms are named "linf", "l2" and "l1", in upper or lower case. `epsilon` and step sizes may be Python numbers or traced
scalars (training ramps them), so nothing here branches on their value except `check_epsilon`.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lrat_jax.core.arguments import shown

# Avoids 0 / 0 in a direction if a gradient or a draw is 0; far below any float32 norm that matters.
_TINY = 1e-12
# Replaces an infinite slope; its reciprocal can still be represented in float32.
_HUGE = 1e30


class Norm(NamedTuple):
  """The functions of a norm that attacks need; `delta` and `gradient` are [batch, ...].

  Attributes:
    length: delta -> [batch], the norm of each example.
    shrink: (delta, epsilon) -> delta, the nearest point (in L2) of the ball around 0; epsilons per example are
      [batch, 1, ...].
    steepest: gradient -> the direction of unit norm that raises a linear function most; 0 where the gradient is 0.
    sample: (key, shape) -> a draw from the unit ball, uniform in volume, for one example.
    diameter: shape of one example -> the norm of the longest vector between two images in [0, 1].
  """

  length: Callable[[Array], Array]
  shrink: Callable[[Array, Array | float], Array]
  steepest: Callable[[Array], Array]
  sample: Callable[[Array, tuple[int, ...]], Array]
  diameter: Callable[[tuple[int, ...]], float]


def _axes(x: Array) -> tuple[int, ...]:
  return tuple(range(1, x.ndim))


def _l0_length(x: Array) -> Array:
  return jnp.sum(x != 0, axis=_axes(x)).astype(x.dtype)


def _l2_length(x: Array) -> Array:
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=_axes(x)))


def _per_example(values: Array, like: Array) -> Array:
  return values.reshape(values.shape + (1,) * (like.ndim - 1))


def _l2_shrink(delta: Array, epsilon: Array | float) -> Array:
  length = _per_example(_l2_length(delta), delta)
  return delta * jnp.minimum(1.0, epsilon / jnp.maximum(length, _TINY))


def _l2_steepest(gradient: Array) -> Array:
  # Scaled by the largest entry first, so that squares of tiny gradients do not underflow.
  largest = jnp.max(jnp.abs(gradient), axis=_axes(gradient), keepdims=True)
  scaled = gradient / jnp.where(largest > 0, largest, 1.0)
  return scaled / _per_example(jnp.maximum(_l2_length(scaled), _TINY), scaled)


def _l1_length(x: Array) -> Array:
  return jnp.sum(jnp.abs(x), axis=_axes(x))


def _l1_shrink(delta: Array, epsilon: Array | float) -> Array:
  """Soft thresholding at the level at which the absolute values sum to epsilon (Duchi et al. 2008, figure 1)."""
  sizes = jnp.abs(delta).reshape(delta.shape[0], -1)
  ordered = jnp.flip(jnp.sort(sizes, axis=1), axis=1)
  budget = epsilon.reshape(-1, 1) if isinstance(epsilon, Array) and epsilon.ndim else epsilon
  levels = (jnp.cumsum(ordered, axis=1) - budget) / jnp.arange(1, ordered.shape[1] + 1)
  level = jnp.maximum(jnp.max(levels, axis=1), 0.0)
  return jnp.sign(delta) * jnp.maximum(jnp.abs(delta) - _per_example(level, delta), 0.0)


def _l1_steepest(gradient: Array) -> Array:
  flat = gradient.reshape(gradient.shape[0], -1)
  largest = jax.nn.one_hot(jnp.argmax(jnp.abs(flat), axis=1), flat.shape[1], dtype=flat.dtype)
  return (largest * jnp.sign(flat)).reshape(gradient.shape)


def _l1_sample(key: Array, shape: tuple[int, ...]) -> Array:
  sign_key, size_key = jax.random.split(key)
  # n + 1 exponentials divided by their sum are uniform on a simplex; the last one is the unused length.
  sizes = jax.random.exponential(size_key, (math.prod(shape) + 1,))
  return jax.random.rademacher(sign_key, shape, sizes.dtype) * (sizes[:-1] / jnp.sum(sizes)).reshape(shape)


def _l2_sample(key: Array, shape: tuple[int, ...]) -> Array:
  direction_key, radius_key = jax.random.split(key)
  direction = jax.random.normal(direction_key, shape)
  radius = jax.random.uniform(radius_key) ** (1.0 / math.prod(shape))
  return radius * direction / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(direction))), _TINY)


NORMS: dict[str, Norm] = {
  "linf": Norm(
    length=lambda delta: jnp.max(jnp.abs(delta), axis=_axes(delta)),
    shrink=lambda delta, epsilon: jnp.clip(delta, -epsilon, epsilon),
    steepest=jnp.sign,
    sample=lambda key, shape: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0),
    diameter=lambda shape: 1.0,
  ),
  "l2": Norm(
    length=_l2_length,
    shrink=_l2_shrink,
    steepest=_l2_steepest,
    sample=_l2_sample,
    diameter=lambda shape: math.sqrt(math.prod(shape)),
  ),
  "l1": Norm(
    length=_l1_length,
    shrink=_l1_shrink,
    steepest=_l1_steepest,
    sample=_l1_sample,
    diameter=math.prod,
  ),
}


# The distance to a hyperplane is measured by the dual norm of its normal.
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
# The number of components that differ. It has no ball to sample from and no steepest direction, so it is not a `Norm`.
L0 = "l0"


def norm_name(name: str, field: str = "norm", choices: Collection[str] = tuple(NORMS)) -> str:
  """A norm's name in lower case ("linf", "l2", "l1"). Raises ValueError, with field and choices, if it is unknown."""
  if not isinstance(name, str) or name.lower() not in choices:
    raise ValueError(f"{field}={shown(name)} is unknown; choose from {sorted(choices)}.")
  return name.lower()


def length_of(name: str) -> Callable[[Array], Array]:
  """The length that measures distances, delta -> [batch]: that of a `Norm`, or for "l0" the number of nonzeros."""
  return _l0_length if name == L0 else get_norm(name).length


def get_norm(name: str) -> Norm:
  """The `Norm` of that name, in upper or lower case. Raises ValueError with the choices if there is none."""
  return NORMS[norm_name(name)]


def rounded(points: Array, images: Array, dtype: Any) -> Array:
  """Points in a float type that represents the clean images, rounded to nearest, but never away from the images.

  So a point inside a ball around its image stays inside, in every norm.
  """
  nearest = points.astype(dtype)
  is_further = jnp.abs(nearest.astype(points.dtype) - images) > jnp.abs(points - images)
  return jnp.where(is_further, jnp.nextafter(nearest, images.astype(dtype)), nearest)


def check_epsilon(epsilon: float, norm: str, image_shape: tuple[int, ...], field: str = "epsilon") -> None:
  """Raises ValueError for a radius below 0, not finite, or above the diameter of [0, 1] images of shape [h, w, c]."""
  widest = math.prod(image_shape) if norm == L0 else get_norm(norm).diameter(image_shape)
  if not 0 <= epsilon <= widest:
    raise ValueError(
      f"{field}={epsilon:g} is outside [0, {widest:g}], the range of {norm} distances between images in [0, 1]."
    )


def per_image(values: Array, ndim: int = 4) -> Array:
  """Values [batch] reshaped to [batch, 1, ...] with `ndim` axes, to broadcast with images."""
  return values.reshape(values.shape + (1,) * (ndim - 1))


def finite(images: Array) -> Array:
  """Whether all values of each image [batch, h, w, c] are finite, bool [batch]; NaN gradients can make them NaN."""
  return jnp.isfinite(images).all(axis=_axes(images))


def numbers(gradient: Array) -> Array:
  """The gradient with NaN replaced by 0, so that only these coordinates take no step, and infinities by +-1e30."""
  return jnp.nan_to_num(gradient, posinf=_HUGE, neginf=-_HUGE)


def project(images: Array, originals: Array, epsilon: Array | float, norm: Norm) -> Array:
  """The images [batch, h, w, c] projected on the ball around `originals`, then clipped to [0, 1].

  `originals` are in [0, 1], so clipping only shortens the difference and the result is inside both.
  """
  return jnp.clip(originals + norm.shrink(images - originals, epsilon), 0.0, 1.0)
