"""Shared by the gradients of this package's convolutions: residuals, microbatches, gradients of kernels."""

import math
from collections.abc import Callable, Sequence

import jax
from jax import Array
from jax.custom_derivatives import CustomVJPPrimal

from lrat_jax.core import microbatch as microbatch_lib

# Numbers in float32 that fit into a CPU core's cache (2 MB). A kernel above the second is read once for all images.
_CACHED = 2**19
_LARGEST_KERNEL = 2**20


def microbatch(function: Callable[..., Array], images: Sequence[Array], per_image: int, kernel: Sequence[int]) -> Array:
  """`function(*images)` on arrays [n, ...], a few images at a time if that is faster: [times, ...].

  The intermediate results of a layer are larger than its inputs and outputs, and those of many images do not stay in
  the cache. If a kernel fills the cache by itself, it is better to read it once for all images.

  Args:
    per_image: number of intermediate values for each image.
    kernel: the shape of the kernel that is read besides the images.
  """
  fitting = max(_CACHED // per_image, 1) if math.prod(kernel) <= _LARGEST_KERNEL else len(images[0])
  return microbatch_lib.microbatch(function, fitting, *images)


def kept(x: CustomVJPPrimal, kernel: CustomVJPPrimal) -> tuple[Array, Array]:
  """The residuals for the gradients of a convolution: (images, kernel).

  If the kernel needs no gradient, as in an attack, no image is kept, [0, h, w, c]: this halves what is traced.
  """
  return x.value if kernel.perturbed else x.value[:0], kernel.value


def pull_back(function: Callable[[Array], Array], kernel: Array, cotangent: Array) -> Array:
  """The gradient with respect to a kernel, from the gradient with respect to a linear function of it.

  Under shard_map, with a replicated kernel and a cotangent that differs between devices, this is the sum over the
  devices: the zeros that are added here vary over devices as the cotangent does.
  """
  nothing = 0.0 * cotangent
  return jax.vjp(lambda kernel: function(kernel) + nothing, kernel)[1](cotangent)[0]
