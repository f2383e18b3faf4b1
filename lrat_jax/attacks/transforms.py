"""Gradient transforms for transfer to other models: momentum, Nesterov's look-ahead, diverse inputs, smoothing.

    transform = transforms.chain(transforms.diversity(), transforms.translation(), transforms.momentum())
    attacks.pgd(..., random_start="none", gradient_transform=transform)

or by name, with the default constants: gradient_transform=("diversity", "translation", "momentum"). A transform is a
`GradientTransform`, and a user-defined one is another such tuple. In torchattacks "momentum" is MIFGSM, "nesterov"
NIFGSM, "diversity" DIFGSM, and "translation" TIFGSM with diversity_prob=0; all four start from the image itself.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrat_jax.core.arguments import check_choice, check_count, check_number
from lrat_jax.core.typing import Images, KeyPerImage, Scalar

# Avoids a division of 0 by a gradient's mean size of 0; a tiny mean size is valid.
_TINY = 1e-30


class GradientTransform(NamedTuple):
  """Pure functions between a model's gradient and an attack's step; each image is treated independently.

  Attributes:
    init: images -> state, a tree of arrays [batch, ...], computed from the images so that it varies over devices as
      they do under `shard_map`.
    inputs: (keys [batch], points, state, step_size) -> the points at which the model is evaluated. The gradient is with
      respect to `points`, through this function. The keys are new at each step.
    update: (gradient, state) -> (the gradient to follow, state). The gradient contains no NaN.
  """

  init: Callable[[Images], Any]
  inputs: Callable[[KeyPerImage, Images, Any, Scalar], Images]
  update: Callable[[Array, Any], tuple[Array, Any]]


IDENTITY = GradientTransform(
  init=lambda images: (),
  inputs=lambda keys, points, state, step_size: points,
  update=lambda gradient, state: (gradient, state),
)


def _accumulate(decay: float) -> Callable[[Array, Array], tuple[Array, Array]]:
  """g' = decay * g + gradient / mean |gradient|, which is both the direction and the next state."""

  def update(gradient: Array, state: Array) -> tuple[Array, Array]:
    size = jnp.mean(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
    total = decay * state + gradient / jnp.maximum(size, _TINY)
    return total, total

  return update


def momentum(decay: float = 1.0) -> GradientTransform:
  """Steps along a decaying sum of gradients, each of mean size 1 (MI-FGSM, Dong et al., arXiv:1710.06081, eq. 6).

  The paper divides by the L1 norm, the authors' code by the mean size; this constant factor changes no direction.

  Args:
    decay: factor of the previous sum at each step, in [0, 10]; 1 in the paper.
  """
  check_number(decay, "decay", "[0, 10]")
  return IDENTITY._replace(init=lambda images: 0.0 * images, update=_accumulate(decay))


def nesterov(decay: float = 1.0) -> GradientTransform:
  """Momentum with the gradient taken one step ahead, at x + step_size * decay * g (NI-FGSM, arXiv:1908.06281, eq. 6-8).

  The points ahead may be outside the ball and [0, 1]. Their distance depends on the size of g, whose terms have mean
  size 1 as in `momentum` and in the authors' code.

  Args:
    decay: as for `momentum`.
  """
  look_ahead = lambda keys, points, state, step_size: points + step_size * decay * state
  return momentum(decay)._replace(inputs=look_ahead)


def diversity(probability: float = 0.5, resize_rate: float = 0.9) -> GradientTransform:
  """The model is evaluated on the image, shrunk and placed at random on black (DIM, Xie et al., arXiv:1803.06978).

  A size is drawn from floor(resize_rate * size) to size - 1, then a place, both for each image and step; the original
  draws them once for the batch. Interpolation is bilinear. The paper enlarges the images instead; shrinking them keeps
  the input size that networks are made for, as in torchattacks.

  Args:
    probability: probability of shrinking, in [0, 1]; otherwise the image is unchanged. 0.5 in the paper.
    resize_rate: the smallest size as a share of the image's, in [0.1, 1].
  """
  check_number(probability, "probability", "[0, 1]")
  check_number(resize_rate, "resize_rate", "[0.1, 1]")

  def shrunk(key: Array, image: Array) -> Array:
    size_key, place_key, chance_key = jax.random.split(key, 3)
    sizes = np.array(image.shape[:2])
    least = np.maximum((resize_rate * sizes).astype(int), 1)
    new = least + jnp.floor(jax.random.uniform(size_key) * np.maximum(sizes - least, 1))
    place = jnp.floor(jax.random.uniform(place_key, (2,)) * (sizes - new + 1))
    scale, place = (new / sizes).astype(image.dtype), place.astype(image.dtype)
    small = jax.image.scale_and_translate(image, image.shape, (0, 1), scale, place, "linear", antialias=False)
    return jnp.where(jax.random.uniform(chance_key) < probability, small, image)

  return IDENTITY._replace(inputs=lambda keys, points, state, step_size: jax.vmap(shrunk)(keys, points))


def gaussian(size: int, radius: float) -> np.ndarray:
  """A Gaussian kernel of `size` weights that sum to 1, reaching from -radius to radius standard deviations."""
  weights = np.exp(-0.5 * np.linspace(-radius, radius, size) ** 2)
  return weights / weights.sum()


def translation(kernel_size: int = 15, radius: float = 3.0) -> GradientTransform:
  """Smooths the gradient, which approximates the mean over shifted images (TI-FGSM, arXiv:1904.02884, eq. 7).

  Each channel is convolved with a Gaussian, with zero padding. The paper's kernels are for 299 x 299 pixels; use
  smaller ones for smaller images.

  Args:
    kernel_size: side of the kernel in pixels, an odd number; 15 is the best one in the paper.
    radius: the kernel's half width in standard deviations, in (0, 10]; 3 in the paper.
  """
  if check_count(kernel_size, "kernel_size", 1) % 2 == 0:
    raise ValueError(f"kernel_size={kernel_size} must be odd.")
  check_number(radius, "radius", "(0, 10]")
  kernel = gaussian(kernel_size, radius) if kernel_size > 1 else np.ones(1)

  def along(length: int) -> np.ndarray:
    """[length, length]: the convolution along an axis as a matrix."""
    return sum(weight * np.eye(length, k=place - kernel_size // 2) for place, weight in enumerate(kernel))

  def update(gradient: Array, state: Any) -> tuple[Array, Any]:
    rows, columns = (jnp.asarray(along(length), gradient.dtype) for length in gradient.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, gradient, columns, precision="highest"), state

  return IDENTITY._replace(update=update)


def chain(*transforms: GradientTransform) -> GradientTransform:
  """The transforms in sequence: both the points and the gradient pass through them in this order."""

  def init(images: Array) -> tuple[Any, ...]:
    return tuple(transform.init(images) for transform in transforms)

  def inputs(keys: Array, points: Array, states: tuple[Any, ...], step_size: Scalar) -> Array:
    for index, (transform, state) in enumerate(zip(transforms, states, strict=True)):
      own_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
      points = transform.inputs(own_keys, points, state, step_size)
    return points

  def update(gradient: Array, states: tuple[Any, ...]) -> tuple[Array, tuple[Any, ...]]:
    new = []
    for transform, state in zip(transforms, states, strict=True):
      gradient, state = transform.update(gradient, state)
      new.append(state)
    return gradient, tuple(new)

  return GradientTransform(init, inputs, update)


TRANSFORMS: dict[str, Callable[[], GradientTransform]] = {
  "momentum": momentum,
  "nesterov": nesterov,
  "diversity": diversity,
  "translation": translation,
}

# What attacks accept: a transform, a name, or a sequence of names.
Transforms = GradientTransform | str | Sequence[str]


def get_transform(given: Transforms | None) -> GradientTransform:
  """A transform as given, or the chain of the named ones with default constants; None gives `IDENTITY`.

  Raises:
    ValueError: anything else; the message gives the choices.
  """
  if given is None or isinstance(given, GradientTransform):
    return given or IDENTITY
  names: Sequence[Any] = given if isinstance(given, list | tuple) else (given,)
  for name in names:
    check_choice(name, "gradient_transform", list(TRANSFORMS))
  return chain(*(TRANSFORMS[name]() for name in names))
