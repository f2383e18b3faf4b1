"""Decoders that move pixels: each takes an image [h, w, c] and a latent, and is the identity where the latent is 0."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import ndimage
from scipy import ndimage as host_ndimage

# As in the original for images 32 pixels wide: deviation and radius of the filter that smooths flows, as shares of a
# side, and the number of bars that are displaced.
_DEVIATION = 3.0 / 224
_RADIUS = 12 / 224
_BARS = 16


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def sample(image: Array, rows: Array, columns: Array, beyond: str = "constant") -> Array:
  """Samples an image [h, w, c] at places in pixels, bilinearly. Outside it is 0 or, with "reflect", mirrored.

  Places are [h, w], or [h, w, c] with separate ones for each channel. Their gradient is a central difference over one
  pixel on each side. The exact derivative is 0 in a flat part of the image, even next to an edge, so a place that
  starts there would never move.
  """
  one = lambda plane, rows, columns: ndimage.map_coordinates(plane, [rows, columns], order=1, mode=beyond)
  shared = None if rows.ndim == 2 else -1
  return jax.vmap(one, in_axes=(-1, shared, shared), out_axes=-1)(image, rows, columns)


@sample.defjvp
def _sample_jvp(
  beyond: str, primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
  image, rows, columns = primals
  image_tangent, *place_tangents = tangents
  at = lambda down, right: sample(image, rows + down, columns + right, beyond)
  slopes = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
  changes = [tangent if tangent.ndim == 3 else tangent[..., None] for tangent in place_tangents]
  moved = slopes[0] * changes[0] + slopes[1] * changes[1]
  return at(0, 0), moved + sample(image_tangent, rows, columns, beyond)


def _places(image: Array) -> tuple[Array, Array]:
  """Rows and columns [h, w] of an image's pixels."""
  rows, columns = jnp.meshgrid(*(jnp.arange(size, dtype=image.dtype) for size in image.shape[:2]), indexing="ij")
  return rows, columns


def stadv(image: Array, flow: Array, drawn: None) -> Array:
  """The image at places moved by a flow [h, w, 2], down and right, in half sides (arXiv:1801.02612).

  No place is more than half a pixel outside the image, as in the implementation of perceptual-advex.
  """
  height, width, _ = image.shape
  rows, columns = _places(image)
  rows = jnp.clip(rows + flow[..., 0] * height / 2, -0.5, height - 0.5)
  columns = jnp.clip(columns + flow[..., 1] * width / 2, -0.5, width - 0.5)
  return sample(image, rows, columns)


def smoothing(size: int, deviation: float, radius: int) -> np.ndarray:
  """The linear map [size, size] of a Gaussian filter of 2 radius + 1 entries; edges are mirrored."""
  kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
  return host_ndimage.correlate1d(np.eye(size), kernel / kernel.sum(), axis=0, mode="mirror").astype(np.float32)


def smoothed(field: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
  """A field [h, w, c] after linear maps of its rows and of its columns."""
  return jnp.einsum("ih,jw,hwc->ijc", rows.astype(field.dtype), columns.astype(field.dtype), field)


def elastic(image: Array, flow: Array, drawn: None) -> Array:
  """The image at places moved by a smoothed flow [h, w, 2], down and right, in pixels (arXiv:1908.08016).

  The filter's deviation is 3 / 224 of a side, and it has five entries at 32 pixels, as in the original.
  """
  maps = [smoothing(size, _DEVIATION * size, max(math.ceil(_RADIUS * size), 2)) for size in image.shape[:2]]
  flow = smoothed(flow, *maps)
  rows, columns = _places(image)
  return sample(image, rows + flow[..., 0], columns + flow[..., 1])


def num_bars(height: int) -> int:
  """The number of horizontal bars that an image of that height is cut into."""
  return min(_BARS, height)


def glitch(image: Array, shifts: Array, drawn: None) -> Array:
  """The image with each channel of each horizontal bar sampled from places moved right by shifts [bars, c].

  Shifts are in half widths (arXiv:1908.08016v3). The image is mirrored at its edges. The original also moves the whole
  image by half a pixel; this does not.
  """
  height, width, _ = image.shape
  rows, columns = _places(image)
  bar = np.arange(height) * len(shifts) // height
  columns = columns[..., None] + shifts[bar][:, None] * width / 2
  return sample(image, jnp.broadcast_to(rows[..., None], columns.shape), columns, "reflect")
