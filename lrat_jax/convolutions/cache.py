"""What the gradients of our own convolutions share: what they need, images a few at a time, the way to a kernel."""

import math
from collections.abc import Callable, Sequence

import jax
from jax import Array
from jax.custom_derivatives import CustomVJPPrimal

from lrat_jax.core import microbatch as microbatch_lib

# Numbers on which a CPU core works from its cache (2 MB), and those of the largest kernel that has room beside them.
_CACHED = 2**19
_LARGEST_KERNEL = 2**20


def microbatch(function: Callable[..., Array], images: Sequence[Array], per_image: int, kernel: Sequence[int]) -> Array:
  """`function(*images)` of arrays [n, ...], a few images at a time where that is faster: [times, ...].

  Between two steps of a layer lie more numbers than it begins or ends with, and those of many images leave the cache in
  between. A kernel that fills the cache by itself is better read once for all images.

  Args:
    per_image: numbers in between, for each image.
    kernel: the shape of what is read besides the images.
  """
  fitting = max(_CACHED // per_image, 1) if math.prod(kernel) <= _LARGEST_KERNEL else len(images[0])
  return microbatch_lib.microbatch(function, fitting, *images)


def kept(x: CustomVJPPrimal, kernel: CustomVJPPrimal) -> tuple[Array, Array]:
  """What the gradients of a convolution need: (images, kernel).

  Where none is taken by the kernel, as under an attack, no image is kept, [0, h, w, c]: there is half as much to trace.
  """
  return x.value if kernel.perturbed else x.value[:0], kernel.value


def pull_back(function: Callable[[Array], Array], kernel: Array, cotangent: Array) -> Array:
  """The gradient by a kernel from that by a linear function of it.

  Under shard_map, where the kernel is whole on every device and the cotangent its own on each, this is the sum over the
  devices: what is added here, nothing, differs between them as the cotangent does.
  """
  nothing = 0.0 * cotangent
  return jax.vjp(lambda kernel: function(kernel) + nothing, kernel)[1](cotangent)[0]
