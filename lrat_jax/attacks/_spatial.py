"""Rotations and translations: for each image the worst one of a grid."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import ndimage

from lrat_jax.attacks._entry import AttackResult, entry
from lrat_jax.attacks._search import search
from lrat_jax.core.arguments import check_count, check_number
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn


def transform(images: Array, angle: float | Array, down: float | Array, right: float | Array) -> Array:
  """Images [batch, h, w, c] rotated by `angle` degrees (counter-clockwise) about their centre, then moved by pixels.

  Interpolation is bilinear, and pixels from outside the image are 0. The result stays in [0, 1].
  """
  _, height, width, _ = images.shape
  rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
  middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
  rows, columns = rows - middle_row - down, columns - middle_column - right
  cosine, sine = jnp.cos(jnp.deg2rad(angle)), jnp.sin(jnp.deg2rad(angle))
  coordinates = [
    cosine * rows + sine * columns + middle_row,
    -sine * rows + cosine * columns + middle_column,
  ]
  sample = lambda plane: ndimage.map_coordinates(plane, coordinates, order=1, mode="constant", cval=0.0)
  return jax.vmap(jax.vmap(sample, in_axes=-1, out_axes=-1))(images)


@entry(max_rotation="[0, 180]", max_translation="[0, inf]", num_rotations=1, num_translations=1)
def spatial(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  max_rotation: float = 30.0,
  max_translation: float = 3.0,
  num_rotations: int = 31,
  num_translations: int = 5,
) -> AttackResult:
  """The worst of a grid of rotations and translations (Engstrom et al., arXiv:1712.02779, section 3).

  The defaults are that paper's for 32x32 images: 31 angles times 5 x 5 shifts. There is no epsilon: the images may
  be far from the originals in every norm.

  Args:
    key: a typed key or one per image [batch]; not used, because the attack is deterministic.
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    max_rotation: degrees, in [0, 180]; angles are spaced evenly over +-max_rotation.
    max_translation: pixels, 0 or more; shifts down and right are spaced evenly over +-max_translation.
    num_rotations: number of angles, 1 or more; a single one is 0 degrees.
    num_translations: number of shifts in each direction; a single one is 0 pixels.

  Returns:
    AttackResult: the first image of the grid that fools the model, else the one with the largest margin; unchanged if
    the model is wrong on the clean image. `surviving_steps`: number of images of the grid that the model classifies
    correctly before that.

  Raises:
    ValueError: an argument outside the values listed here.
  """
  check_number(max_translation, "max_translation", f"[0, {max(images.shape[1:3])}]")
  check_count(num_rotations * num_translations**2, "num_rotations * num_translations ** 2", 1)
  spread = lambda most, count: np.linspace(-most, most, count) if count > 1 else np.zeros(1)
  shifts = spread(max_translation, num_translations)
  grid = np.stack(np.meshgrid(spread(max_rotation, num_rotations), shifts, shifts, indexing="ij"), axis=-1)
  grid = grid.reshape(-1, 3).astype(np.float32)
  propose = lambda _, query: transform(images, *jnp.array(grid)[query + 1])
  return search(logits_fn, images, labels, transform(images, *grid[0]), propose, len(grid) - 1)
