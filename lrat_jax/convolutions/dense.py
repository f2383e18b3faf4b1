"""A convolution over a few pixels as one matrix product, for CPU.

With a 3x3 kernel, 20 of the 36 products on an image of 2x2 are with padding, and 8 of 9 on a single pixel. The matrix
[h w c_in, h' w' c_out] that maps whole images to whole results has only the other products, and one matrix product is
what a CPU computes fastest. It does not depend on the images, so XLA computes it once, before an attack's loop.
"""

import jax.numpy as jnp
from jax import Array, lax

_Strides = tuple[int, int]
_Padding = tuple[tuple[int, int], tuple[int, int]]


def places(shape: tuple[int, ...], kernel: tuple[int, ...], strides: _Strides, padding: _Padding) -> int:
  """The number of pairs of an input and an output pixel: the size of the matrix, in units of one tap of the kernel."""
  height, width = shape[1:3]
  rows, columns = _results(shape, kernel, strides, padding)
  return height * width * rows * columns


def convolve(x: Array, kernel: Array, strides: _Strides, padding: _Padding) -> Array:
  """`conv2d` by one matrix product; its gradients, by autodiff, are two more."""
  rows, columns = _results(x.shape, kernel.shape, strides, padding)
  matrix = _spread(kernel, 0, x.shape[1], rows, strides[0], padding[0][0])  # [h', h, kw, c, k]
  matrix = _spread(matrix, 2, x.shape[2], columns, strides[1], padding[1][0])  # [w', h', h, w, c, k]
  matrix = matrix.transpose(2, 3, 4, 1, 0, 5).reshape(-1, rows * columns * kernel.shape[3])
  return (x.reshape(len(x), -1) @ matrix).reshape(len(x), rows, columns, kernel.shape[3])


def _results(shape: tuple[int, ...], kernel: tuple[int, ...], strides: _Strides, padding: _Padding) -> tuple[int, int]:
  """(rows, columns) of a convolution's output."""
  rows, columns = ((shape[1 + i] + sum(padding[i]) - kernel[i]) // strides[i] + 1 for i in range(2))
  return rows, columns


def _spread(taps: Array, axis: int, size: int, results: int, stride: int, before: int) -> Array:
  """The tap that multiplies each of `size` pixels for each result along an axis, or 0; [results, .., size, ..]."""
  reach = taps.shape[axis]
  first, last = max((results - 1) * stride - before, 0), max(size + before - reach, 0)
  edges = [(0, 0, 0)] * taps.ndim
  edges[axis] = (first, last, 0)
  padded = lax.pad(taps, jnp.zeros((), taps.dtype), edges)
  starts = [first + before - result * stride for result in range(results)]
  return jnp.stack([lax.slice_in_dim(padded, start, start + size, axis=axis) for start in starts])
