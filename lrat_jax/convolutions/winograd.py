"""3x3 convolutions of stride 1 by Winograd's minimal filtering, with gradients of the same cost, for CPU.

A convolution that computes m x m outputs from a tile of (m + 2) x (m + 2) inputs needs (m + 2)^2 products instead of
9 m^2: 4 times fewer for m = 4, 2.25 for m = 2 (Lavin & Gray, arXiv:1509.09308). Both axes of the tiles are transformed
by small constant matrices, mostly additions, and the products are one matrix product over channels for each of the
(m + 2)^2 positions. XLA:CPU runs those at full speed inside loops too, where it has no fast convolution for gradients.
Of large images, only as many are processed at once as fit in a core's cache.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lrat_jax.convolutions.cache import kept, microbatch, pull_back

# Where the polynomials of the tiles are evaluated, besides at infinity (Cook-Toom); small points lose little precision.
_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 1.0, -1.0, 0.5, -2.0)}


class _Tiling(NamedTuple):
  """One axis: `count` tiles of `outputs` outputs; matrices `data` [p, p], `kernel` [p, 3], `result` [outputs, p]."""

  outputs: int
  count: int  # type: ignore[assignment]  # of tiles, not the method of tuples
  data: np.ndarray
  kernel: np.ndarray
  result: np.ndarray


def _tiling(size: int, outputs: int) -> _Tiling:
  points = np.array(_POINTS[outputs])
  others = [np.delete(points, i) for i in range(len(points))]
  # The row of a point is the polynomial that is 0 at all other points; that of infinity is 0 at all points.
  data = np.array([[*np.poly(o)[::-1], 0.0] for o in others] + [np.poly(points)[::-1]])
  scale = np.array([np.prod(point - o) for point, o in zip(points, others, strict=True)])
  kernel = np.vstack([points[:, None] ** np.arange(3) / scale[:, None], [0, 0, 1]])
  result = np.hstack([points ** np.arange(outputs)[:, None], np.eye(outputs)[:, -1:]])
  return _Tiling(outputs, -(-size // outputs), data, kernel, result)


def has_small_tiles(x: Array) -> bool:
  """Whether images [n, h, w, c] are cut into tiles of 2 x 2 outputs instead of 4 x 4.

  With tiles of 4 x 4 the transformed kernels would outweigh the few tiles of a small image.
  """
  return min(x.shape[1:3]) <= 4


def _tilings(x: Array) -> tuple[_Tiling, _Tiling]:
  """The tilings of height and width, with tiles of 4 x 4 or of 2 x 2 outputs."""
  outputs = 2 if has_small_tiles(x) else 4
  return _tiling(x.shape[1], outputs), _tiling(x.shape[2], outputs)


def _combine(coefficients: np.ndarray, terms) -> Array:
  """The sum of coefficients times terms; most coefficients are 0, 1 or -1, and every row has one that is not 0."""
  scaled = [term if c == 1 else lax.mul(term, float(c)) for c, term in zip(coefficients, terms, strict=True) if c]
  return functools.reduce(lax.add, scaled)


def _spread(x: Array, axis: int, matrix: np.ndarray, step: int, count: int) -> Array:
  """A matrix [p, r] times the tiles of an axis, which start `step` apart: [..., axis, ...] -> [p, ..., count, ...]."""
  reach = range(matrix.shape[1])
  rows = [lax.slice_in_dim(x, r, r + step * (count - 1) + 1, stride=step, axis=axis) for r in reach]
  return jnp.stack([_combine(coefficients, rows) for coefficients in matrix])


def interleave(parts, axis: int) -> Array:
  """Parts of equal shape interleaved along an axis, whose length is then that of all parts together."""
  stacked = jnp.stack(parts, axis=axis + 1)
  return stacked.reshape(*stacked.shape[:axis], -1, *stacked.shape[axis + 2 :])


def _gather(positions: Array, axis: int, matrix: np.ndarray, step: int) -> Array:
  """The transpose of `_spread`: tiles [p, ..., count, ...] to an axis, summed where neighbours overlap."""
  columns = [_combine(coefficients, positions) for coefficients in matrix.T]
  own, next_tile = columns[:step], columns[step:]
  if not next_tile:
    return interleave(own, axis)
  blank = [(0, 0)] * own[0].ndim
  last, first = blank.copy(), blank.copy()
  last[axis], first[axis] = (0, 1), (1, 0)
  own = [jnp.pad(part, last) for part in own]
  for r, part in enumerate(next_tile):
    own[r] += jnp.pad(part, first)
  return interleave(own, axis)


def _padded(x: Array, height: tuple[int, int], width: tuple[int, int]) -> Array:
  return jnp.pad(x, ((0, 0), height, width, (0, 0)))


def _tiles_of_inputs(x: Array) -> Array:
  """x [n, h, w, c] -> [p^2, n th tw, c]."""
  rows, columns = _tilings(x)
  ends = [t.outputs * t.count + 1 - size for t, size in zip((rows, columns), x.shape[1:3], strict=True)]
  tiles = _padded(x, (1, ends[0]), (1, ends[1]))
  tiles = _spread(tiles, 1, rows.data, rows.outputs, rows.count)
  tiles = _spread(tiles, 3, columns.data, columns.outputs, columns.count)
  return tiles.reshape(len(rows.data) ** 2, -1, x.shape[-1])


def _transformed_kernel(kernel: Array, tiling: _Tiling) -> Array:
  """kernel [3, 3, c, k] -> [p^2, c, k]. Independent of the images, so XLA moves it out of an attack's loop."""
  both = np.einsum("ia,jb->jiab", tiling.kernel, tiling.kernel).reshape(-1, 9)
  flat = jnp.asarray(both, kernel.dtype) @ kernel.reshape(9, -1)
  return flat.reshape(-1, *kernel.shape[2:])


def _microbatch(function: Callable[..., Array], kernel: Array, *images: Array) -> Array:
  """`microbatch` with the sizes of the tiles and of the transformed kernel."""
  rows, columns = _tilings(images[0])
  positions = len(rows.data) * len(columns.data)
  tiles = positions * rows.count * columns.count * max(kernel.shape[2:])
  return microbatch(function, images, tiles, (positions, *kernel.shape[2:]))


def _forward_of(transformed: Array, x: Array) -> Array:
  """The convolution of a few images."""
  rows, columns = _tilings(x)
  products = jnp.einsum("pmc,pck->pmk", _tiles_of_inputs(x), transformed)
  size = len(rows.data)
  positions = products.reshape(size, size, len(x), rows.count, columns.count, -1)
  y = _gather(positions, 3, columns.result.T, columns.outputs)
  y = _gather(y, 1, rows.result.T, rows.outputs)
  return y[:, : x.shape[1], : x.shape[2]]


def _forward(x: Array, kernel: Array) -> Array:
  transformed = _transformed_kernel(kernel, _tilings(x)[0])
  y = _microbatch(functools.partial(_forward_of, transformed), kernel, x)
  return y.reshape(-1, *y.shape[2:])


@jax.custom_vjp
def conv3x3(x: Array, kernel: Array) -> Array:
  """The convolution of stride 1 with one pixel of zero padding: x [n, h, w, c], kernel [3, 3, c, k] -> [n, h, w, k].

  Equal to `lax.conv_general_dilated` up to rounding: about 1e-5 of the largest output in float32.
  """
  return _forward(x, kernel)


def _residuals(x, kernel):
  return _forward(x.value, kernel.value), kept(x, kernel)


def _tiles_of_cotangents(cotangent: Array) -> Array:
  """The transpose of the last transform of `_forward_of`: cotangent [n, h, w, k] -> [p^2, n th tw, k]."""
  rows, columns = _tilings(cotangent)
  ends = [t.outputs * t.count - size for t, size in zip((rows, columns), cotangent.shape[1:3], strict=True)]
  tiles = _padded(cotangent, (0, ends[0]), (0, ends[1]))
  tiles = _spread(tiles, 1, rows.result.T, rows.outputs, rows.count)
  tiles = _spread(tiles, 3, columns.result.T, columns.outputs, columns.count)
  return tiles.reshape(len(rows.data) ** 2, -1, cotangent.shape[-1])


def _input_gradient_of(transformed: Array, cotangent: Array) -> Array:
  """The gradient for a few images: each linear map of `_forward_of` transposed, with the same transformed kernel."""
  rows, columns = _tilings(cotangent)
  products = jnp.einsum("pmk,pck->pmc", _tiles_of_cotangents(cotangent), transformed)
  size = len(rows.data)
  positions = products.reshape(size, size, len(cotangent), rows.count, columns.count, -1)
  gradient = _gather(positions, 3, columns.data, columns.outputs)
  return _gather(gradient, 1, rows.data, rows.outputs)[:, 1 : 1 + cotangent.shape[1], 1 : 1 + cotangent.shape[2]]


def _kernel_gradient_of(x: Array, cotangent: Array) -> Array:
  """The gradient with respect to the transformed kernel, summed over a few images."""
  return jnp.einsum("pmc,pmk->pck", _tiles_of_inputs(x), _tiles_of_cotangents(cotangent))


def _backward(residuals, cotangent):
  x, kernel = residuals
  transform = functools.partial(_transformed_kernel, tiling=_tilings(x)[0])
  grad_x = _microbatch(functools.partial(_input_gradient_of, transform(kernel)), kernel, cotangent)
  grad_x = grad_x.reshape(-1, *x.shape[1:])
  if not len(x):
    return grad_x, None
  grad_transformed = jnp.sum(_microbatch(_kernel_gradient_of, kernel, x, cotangent), axis=0)
  return grad_x, pull_back(transform, kernel, grad_transformed)


conv3x3.defvjp(_residuals, _backward, symbolic_zeros=True)
