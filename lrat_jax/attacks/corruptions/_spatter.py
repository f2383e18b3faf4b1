"""Water or mud on an image [h, w, c], as drawn with OpenCV for CIFAR-10-C: edges, distances to them, and a relief."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lrat_jax.attacks.corruptions import _filters
from lrat_jax.core.typing import OneKey

_WATER = np.array([175, 238, 238], np.float32) / 255
_MUD = np.array([63, 42, 20], np.float32) / 255
_LEAST_MUD = 0.8
# Canny's thresholds, and tan(22.5 degrees) in fixed point, which separates directions.
_WEAK, _STRONG, _TANGENT, _TANGENT_BITS = 50, 150, 13573, 15
# Lengths of a step to a neighbour, to a diagonal one and of a knight's move, in fixed point; and the largest distance.
_UNIT = 1 << 16
_STEPS = {(0, 1): _UNIT, (1, 1): round(1.4 * _UNIT), (1, 2): round(2.1969 * _UNIT)}
_FARTHEST = 20
_RELIEF = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
_SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
_AROUND = [(row, column) for row, column in itertools.product((-1, 0, 1), repeat=2) if row or column]


def _moved(plane: Array, row: int, column: int, mode: str = "constant", **options: float) -> Array:
  """For each place of a plane [h, w], the value `row` rows below and `column` columns to the right of it."""
  margin = max(abs(row), abs(column))
  padded = jnp.pad(plane, margin, mode=mode, **options)
  height, width = plane.shape
  return padded[margin + row : margin + row + height, margin + column : margin + column + width]


def _correlated(plane: Array, kernel: np.ndarray, mode: str) -> Array:
  """The correlation of integers [h, w] with a kernel [3, 3]."""
  places = itertools.product(range(3), repeat=2)
  parts = [int(kernel[row, column]) * _moved(plane, row - 1, column - 1, mode) for row, column in places]
  return jnp.sum(jnp.stack(parts), axis=0)


def edges(levels: Array) -> Array:
  """Canny's edges (1986) of a plane int [h, w] of levels 0..255: bool."""
  right, down = (_correlated(levels, kernel, "edge") for kernel in (_SOBEL, _SOBEL.T))
  size = jnp.abs(right) + jnp.abs(down)
  at = lambda row, column: _moved(size, row, column)
  tall, flat = jnp.abs(down) << _TANGENT_BITS, jnp.abs(right) * _TANGENT
  falling = (right < 0) != (down < 0)
  along_row = (size > at(0, -1)) & (size >= at(0, 1))
  along_column = (size > at(-1, 0)) & (size >= at(1, 0))
  diagonal = jnp.where(falling, (size > at(-1, 1)) & (size > at(1, -1)), (size > at(-1, -1)) & (size > at(1, 1)))
  steep = tall > flat + (jnp.abs(right) << (_TANGENT_BITS + 1))
  crest = (size > _WEAK) & jnp.where(tall < flat, along_row, jnp.where(steep, along_column, diagonal))

  def grow(carry: tuple[Array, Array]) -> tuple[Array, Array]:
    found, _ = carry
    near = jnp.any(jnp.stack([_moved(found, row, column) for row, column in _AROUND]), axis=0)
    more = found | (crest & near)
    return more, jnp.any(more != found)

  strong = crest & (size > _STRONG)
  return lax.while_loop(lambda carry: carry[1], grow, (strong, jnp.any(strong)))[0]


def distances(found: Array) -> Array:
  """The distance from each place of a plane bool [h, w] to the nearest True, by steps: int, in fixed point.

  A pixel is `_UNIT`, and the distance is `_FARTHEST` pixels at most.
  """
  signs = list(itertools.product((-1, 1), repeat=2))
  moves = {
    (first * row, second * column): length
    for (a, b), length in _STEPS.items()
    for row, column in ((a, b), (b, a))
    for first, second in signs
  }
  far = _FARTHEST * _UNIT

  def relax(_, known: Array) -> Array:
    through = [_moved(known, *move, constant_values=far) + length for move, length in moves.items()]
    return jnp.minimum(known, jnp.min(jnp.stack(through), axis=0))

  return lax.fori_loop(0, _FARTHEST, relax, jnp.where(found, 0, far))


def equalised(levels: Array) -> Array:
  """A plane int [h, w] of levels 0..255 with its histogram equalised as OpenCV does."""
  lowest = jnp.min(levels)
  first, total = jnp.sum(levels == lowest), levels.size
  below = jnp.cumsum(jnp.bincount(levels.ravel(), length=256))[levels]
  spread = jnp.round((below - first).astype(jnp.float32) * (255 / jnp.maximum(total - first, 1).astype(jnp.float32)))
  return jnp.where(first == total, levels, spread.astype(levels.dtype))


def _water(liquid: Array) -> Array:
  """The thickness of water, float [h, w] up to 1, where a liquid [h, w] in [0, 1] is not 0."""
  levels = jnp.floor(255 * liquid).astype(jnp.int32) & 255  # a byte, which overflows above 1, as in the original
  box = np.ones((3, 3), int)
  rounded = _correlated(distances(edges(levels)), box, "reflect") // (9 * _UNIT)
  relief = jnp.clip(_correlated(equalised(rounded), _RELIEF, "reflect"), 0, 255)
  thickness = levels * jnp.round(_correlated(relief, box, "reflect") / 9)
  return thickness / jnp.maximum(jnp.max(thickness), 1.0)


def spattered(image: Array, noise: Array, strength: tuple) -> Array:
  """An image with drops of water, or with spots of mud.

  Args:
    image: float [h, w, c].
    noise: float [h, w], from a standard normal distribution.
    strength: mean, deviation and blur of the liquid, the smallest visible value, the largest weight of water or the
      blur of mud, and whether it is mud.
  """
  mean, deviation, blur, least, amount, is_mud = strength
  liquid = _filters.gaussian((mean + deviation * noise)[..., None], blur)
  rgb = _MUD if is_mud else _WATER
  colour = jnp.asarray(rgb if image.shape[-1] == 3 else rgb.mean(keepdims=True), image.dtype)
  if is_mud:
    cover = _filters.gaussian((liquid > least).astype(image.dtype), amount)
    cover = jnp.where(cover < _LEAST_MUD, 0.0, cover)
    return image * (1 - cover) + cover * colour
  water = _water(jnp.where(liquid < least, 0.0, liquid)[..., 0]).astype(image.dtype)
  return image + amount * water[..., None] * colour


def spatter(key: OneKey, image: Array, strength: tuple) -> Array:
  return spattered(image, jax.random.normal(key, image.shape[:2], image.dtype), strength)
