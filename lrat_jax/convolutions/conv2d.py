"""A two-dimensional convolution, by the fastest method on the platform that the program is compiled for.

GPU and TPU use `lax.conv_general_dilated` with its own gradients. XLA:CPU converts convolutions to the layout of its
fast path only in a program's entry computation; inside a loop, where an attack computes its gradients, autodiff's input
gradient (a convolution with transposed kernel dimensions) is several times slower. So on CPU
- convolutions over so few pixels that most of a kernel meets padding are one matrix product (`dense`);
- 3x3 convolutions of stride 1 between many channels use `winograd`, also for their gradients;
- the others have the usual forward pass; their input gradient is one matrix product and a sum of shifted images, and
  their kernel gradient is one matrix product for each tap;
- `winograd`, and the gradients of the others, process a few images at a time (`microbatch`).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from lrat_jax.convolutions import dense, winograd
from lrat_jax.convolutions.cache import kept, microbatch, pull_back

# With fewer channels than this on either side, winograd's transforms cost more than the products that they save: with
# tiles of 4 x 4 outputs, and with the tiles of 2 x 2 for the smallest images (there, compilation counts as a cost too).
_MIN_WINOGRAD_CHANNELS = 32
_MIN_WINOGRAD_CHANNELS_OF_SMALL = 128

# The matrix of `dense` may have this many times the numbers of the kernel; with many channels, no more than the kernel.
_MAX_DENSE_GROWTH = 2

_Strides = tuple[int, int]
_Padding = tuple[tuple[int, int], tuple[int, int]]


def _plain(x: Array, kernel: Array, strides: _Strides, padding: _Padding) -> Array:
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _fold(taps: list[Array], axis: int, size: int, stride: int, before: int) -> Array:
  """Sums taps along an axis: element o of tap a goes to stride * o + a - before; [.., o, ..] each -> [.., size, ..].

  The elements of each phase of the stride are summed and then interleaved, which is cheaper than padding with zeros.
  """
  per_phase = -(-size // stride)
  phases: list[list[Array]] = [[] for _ in range(stride)]
  for a, tap in enumerate(taps):
    shift, phase = divmod(a - before, stride)
    edges = [(0, 0, 0)] * tap.ndim
    edges[axis] = (shift, per_phase - tap.shape[axis] - shift, 0)
    phases[phase].append(lax.pad(tap, jnp.zeros((), tap.dtype), edges))
  blank = jnp.zeros((*taps[0].shape[:axis], per_phase, *taps[0].shape[axis + 1 :]), taps[0].dtype)
  return lax.slice_in_dim(winograd.interleave([sum(terms, blank) for terms in phases], axis), 0, size, axis=axis)


def _taps(x: Array, size: tuple[int, ...], strides: _Strides, padding: _Padding) -> list[Array]:
  """The pixels that each element of a kernel of that size is multiplied by: [n, h', w', c] each."""
  padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  ends = [length - reach + 1 for length, reach in zip(padded.shape[1:3], size, strict=True)]
  rows = [padded[:, i : i + ends[0] : strides[0]] for i in range(size[0])]
  return [row[:, :, j : j + ends[1] : strides[1]] for row in rows for j in range(size[1])]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _folded_gradient(x: Array, kernel: Array, strides: _Strides, padding: _Padding) -> Array:
  if x.shape[1] >= kernel.shape[0] and x.shape[2] >= kernel.shape[1]:
    return _plain(x, kernel, strides, padding)
  # For images smaller than the kernel, XLA:CPU's convolution is ten times as slow as others.
  columns = jnp.concatenate(_taps(x, kernel.shape[:2], strides, padding), axis=-1)
  return columns @ kernel.reshape(-1, kernel.shape[-1])


def _forward(x, kernel, strides, padding):
  return _folded_gradient(x.value, kernel.value, strides, padding), kept(x, kernel)


def _backward(strides, padding, residuals, cotangent):
  x, kernel = residuals
  height, width, channels, _ = kernel.shape
  taps_of_image = math.prod(cotangent.shape[1:3]) * height * width * channels

  def input_gradient(cotangent):
    taps = cotangent @ kernel.reshape(-1, kernel.shape[-1]).T  # [n, h', w', kh kw c]
    taps = [taps[..., i * channels : (i + 1) * channels] for i in range(height * width)]
    lines = [_fold(taps[i * width : (i + 1) * width], 2, x.shape[2], strides[1], padding[1][0]) for i in range(height)]
    return _fold(lines, 1, x.shape[1], strides[0], padding[0][0])

  def kernel_gradient(x, cotangent):
    return jnp.einsum("tnhwc,nhwk->tck", jnp.stack(_taps(x, (height, width), strides, padding)), cotangent)

  grad_x = microbatch(input_gradient, [cotangent], taps_of_image, kernel.shape).reshape(-1, *x.shape[1:])
  if not len(x):
    return grad_x, None
  grad_taps = jnp.sum(microbatch(kernel_gradient, [x, cotangent], taps_of_image, kernel.shape), axis=0)
  return grad_x, pull_back(lambda kernel: kernel.reshape(grad_taps.shape), kernel, grad_taps)


_folded_gradient.defvjp(_forward, _backward, symbolic_zeros=True)


def on_cpu(x: Array, kernel: Array, strides: _Strides, padding: _Padding) -> Array:
  """`conv2d` for CPU."""
  many = min(kernel.shape[2:]) >= _MIN_WINOGRAD_CHANNELS_OF_SMALL
  largest_matrix = math.prod(kernel.shape[:2]) * (1 if many else _MAX_DENSE_GROWTH)
  if 0 < dense.places(x.shape, kernel.shape, strides, padding) <= largest_matrix:
    return dense.convolve(x, kernel, strides, padding)
  unit = strides == (1, 1) and padding == ((1, 1), (1, 1)) and kernel.shape[:2] == (3, 3)
  enough = _MIN_WINOGRAD_CHANNELS_OF_SMALL if winograd.has_small_tiles(x) else _MIN_WINOGRAD_CHANNELS
  if unit and min(kernel.shape[2:]) >= enough and x.dtype == jnp.float32:
    return winograd.conv3x3(x, kernel)
  return _folded_gradient(x, kernel, strides, padding)


def conv2d(x: Array, kernel: Array, strides: _Strides = (1, 1), padding: _Padding = ((1, 1), (1, 1))) -> Array:
  """Two-dimensional convolution: x [batch, h, w, c_in], kernel [kh, kw, c_in, c_out] -> [batch, h', w', c_out].

  `padding` is (before, after) for the height and for the width.
  """
  cpu, default = (functools.partial(way, strides=strides, padding=padding) for way in (on_cpu, _plain))
  return lax.platform_dependent(x, kernel, cpu=cpu, default=default)
