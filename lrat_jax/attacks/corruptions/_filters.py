"""Linear filters that several corruptions use, for one image [h, w, c], with the originals' treatment of edges."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import ndimage


def along_both(image: Array, rows: np.ndarray | Array, columns: np.ndarray | Array) -> Array:
  """The image after linear maps of its rows and of its columns, each [out, in]."""
  return jnp.einsum("ih,jw,hwc->ijc", rows, columns, image)


def gaussian_matrix(size: int, deviation: float, mode: str = "nearest", truncate: float = 4.0) -> np.ndarray:
  """The matrix of a Gaussian blur of `size` values, as SciPy's: float32 [size, size]. A deviation of 0 is no blur."""
  if not deviation:
    return np.eye(size, dtype=np.float32)
  # The columns of the matrix are the blurred unit vectors.
  blurred = ndimage.gaussian_filter1d(np.eye(size), deviation, axis=0, mode=mode, truncate=truncate)
  return blurred.astype(np.float32)


def gaussian(image: Array, deviation: float) -> Array:
  """A Gaussian blur; beyond the edges, the edge values are repeated."""
  return along_both(image, *(gaussian_matrix(size, deviation) for size in image.shape[:2]))


def zoom_matrix(size: int, factor: float) -> np.ndarray:
  """The matrix that enlarges the centre of `size` values to `size` values: float32 [size, size].

  A whole number of values is cut out and interpolated to a whole number, of which the centre is kept: if a side's
  enlarged size rounds to the size itself, nothing changes.
  """
  cut = int(np.ceil(size / factor))
  start = (size - cut) // 2
  enlarged = ndimage.zoom(np.eye(size)[start : start + cut], (factor, 1), order=1)
  start = (len(enlarged) - size) // 2
  return enlarged[start : start + size].astype(np.float32)


def filtered(image: Array, kernel: np.ndarray) -> Array:
  """The correlation with a kernel [k, k] of odd size; the image is mirrored at the centres of its edge pixels."""
  margin = len(kernel) // 2
  padded = jnp.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
  height, width, _ = image.shape
  shifted = lambda row, column: padded[row : row + height, column : column + width]
  used = zip(*np.nonzero(kernel), strict=True)
  return jnp.sum(jnp.stack([float(kernel[place]) * shifted(*place) for place in used]), axis=0)


def motion(image: Array, radius: int, deviation: float, angle: Array) -> Array:
  """A blur along a line to one side, by half a Gaussian over 2 radius + 1 pixels, as ImageMagick's motion blur.

  Args:
    image: float [h, w, c], whose edge values are repeated beyond its edges.
    radius: in pixels.
    deviation: of the Gaussian, in pixels.
    angle: float [], in degrees, clockwise from the direction of increasing columns.
  """
  count = 2 * radius + 1
  curve = np.exp(-(np.arange(count) ** 2) / (2 * deviation**2))
  weights = jnp.asarray(curve / curve.sum(), image.dtype)
  down, right = jnp.sin(jnp.deg2rad(angle)), jnp.cos(jnp.deg2rad(angle))
  rows, columns = (jnp.arange(size) for size in image.shape[:2])

  def add(step: Array, total: Array) -> Array:
    moved = lambda places, part: jnp.clip(places + jnp.ceil(step * part - 0.5).astype(int), 0, len(places) - 1)
    return total + weights[step] * image[moved(rows, down)][:, moved(columns, right)]

  return jax.lax.fori_loop(0, count, add, 0 * image)
