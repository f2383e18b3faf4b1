"""Square: random search over square windows. It needs only the model's outputs, no gradient."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrat_jax.attacks import _l1, _search, threat_model
from lrat_jax.attacks._entry import AttackResult, entry
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn, Scalar

# The windows' share of the image halves after each of these queries, whatever the total number of queries.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# The exponent with which a window's pattern decays from its two centres.
_FALL_OFF = {"l2": 2, "l1": 4}
# The first perturbation of the l2 and l1 attacks has about this many tiles along the image's shorter side.
_TILES = 5
_TINY = 1e-12

# (draws [batch, n] in [0, 1), best points, query) -> the points to evaluate next.
Propose = Callable[[Array, Array, Array], Array]


def window_sides(height: int, width: int, p_init: float, norm: str) -> tuple[int, ...]:
  """The windows' side in pixels at each stage of the schedule: their area is p * height * width, and p halves.

  The side of l2 and l1 windows is odd and at least 3, so that their pattern has a centre, unless the image is smaller.
  """
  sides = [round(math.sqrt(p_init / 2**stage * height * width)) for stage in range(len(_HALVINGS) + 1)]
  if norm != "linf":
    sides = [max(side, 3) + (max(side, 3) % 2 == 0) for side in sides]
  return tuple(min(max(side, 1), height, width) for side in sides)


def _cone(height: int, width: int, exponent: int) -> np.ndarray:
  """sum over m >= d of 1 / (m + 1)^exponent, with d the Chebyshev distance from the centre. [height, width]."""
  reach = max(height, width) // 2 + 1
  steps = 1.0 / np.arange(1, reach + 1) ** exponent
  sums = np.cumsum(steps[::-1])[::-1]
  rows, columns = np.arange(height)[:, None] - height // 2, np.arange(width) - width // 2
  return sums[np.maximum(abs(rows), abs(columns))]


def window_pattern(side: int, norm: str) -> np.ndarray:
  """The window of the l2 and l1 attacks: a positive cone above a negative one, with total norm 1. [side, side]."""
  size = {"l2": lambda x: np.sqrt(np.sum(x**2)), "l1": lambda x: np.sum(abs(x))}[norm]
  halves = [_cone(rows, side, _FALL_OFF[norm]) for rows in (side // 2, side - side // 2) if rows]
  signs = (1, -1)[-len(halves) :]  # a single row has only the lower half
  pattern = np.concatenate([sign * half / size(half) for sign, half in zip(signs, halves, strict=True)])
  return pattern / size(pattern)


def _draws(keys: Array, query: int | Array, count: int) -> Array:
  """Uniform draws in [0, 1), [batch, count], new for each image and query."""
  return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, query), (count,)))(keys)


def _signs(draws: Array) -> Array:
  return jnp.where(draws < 0.5, -1.0, 1.0)


def _offsets(draws: Array, side: Array, extent: int) -> Array:
  """[batch, extent]: the distance of each pixel from the start of a window of that side, which draws [batch] place.

  As in the original, the last place is never drawn, so the last row and column keep their starting values unless the
  window is as large as the image.
  """
  start = jnp.floor(draws * (extent - side)).astype(jnp.int32)
  return jnp.arange(extent) - start[:, None]


def _inside(rows: Array, columns: Array, side: Array) -> Array:
  """The mask of the windows' pixels, bool [batch, h, w, 1], from the pixels' `_offsets`."""
  row, column = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
  return (row[:, :, None] & column[:, None, :])[..., None]


def _stage(query: Array) -> Array:
  return jnp.sum(query > jnp.array(_HALVINGS))


def _linf_start(keys: Array, images: Array, epsilon) -> Array:
  """Vertical stripes of +-epsilon."""
  _, _, width, channels = images.shape
  signs = _signs(_draws(keys, 0, width * channels)).reshape(-1, 1, width, channels)
  return jnp.clip(images + epsilon * signs, 0.0, 1.0)


def _linf_proposal(images: Array, epsilon, p_init: float) -> tuple[int, Propose]:
  """The number of draws per query, and the proposal: one window set to +-epsilon, with one sign per channel."""
  _, height, width, channels = images.shape
  sides = window_sides(height, width, p_init, "linf")
  ball = threat_model.get_norm("linf")

  def propose(draws: Array, best: Array, query: Array) -> Array:
    side = jnp.array(sides)[_stage(query)]
    window = _inside(_offsets(draws[:, 0], side, height), _offsets(draws[:, 1], side, width), side)
    change = jnp.where(window, 2.0 * epsilon * _signs(draws[:, 2:])[:, None, None, :], 0.0)
    return threat_model.project(best + change, images, epsilon, ball)

  return 2 + channels, propose


def _placed(patterns: Array, rows: Array, columns: Array, flip: Array) -> Array:
  """The pattern [side, side] at the pixels' offsets, transposed if `flip` [batch] is true: [batch, h, w, 1]."""
  side = patterns.shape[0]
  rows, columns = (jnp.clip(offsets, 0, side - 1) for offsets in (rows[:, :, None], columns[:, None, :]))
  index = jnp.where(flip[:, None, None], columns * side + rows, rows * side + columns)
  return patterns.reshape(-1)[index][..., None]


def _tiles_start(keys: Array, images: Array, epsilon, norm: str) -> Array:
  """The images plus tiles of the windows' pattern, each with its own sign per channel, inside the ball."""
  batch, height, width, channels = images.shape
  side = max(min(height, width) // _TILES, 1)
  rows, columns = height // side, width // side
  margin = max(min(height, width) - side * _TILES, 0) // 2
  draws = _draws(keys, 0, rows * columns * (channels + 1)).reshape(batch, rows, 1, columns, 1, channels + 1)
  pattern = jnp.array(window_pattern(side, norm), images.dtype)
  place = lambda pattern: pattern.reshape(1, 1, side, 1, side, 1)
  tiles = jnp.where(draws[..., :1] < 0.5, place(pattern), place(pattern.T)) * _signs(draws[..., 1:])
  delta = tiles.reshape(batch, rows * side, columns * side, channels)
  delta = jnp.pad(delta, ((0, 0), (margin, height), (margin, width), (0, 0)))[:, :height, :width]
  return _inside_ball(images, delta, epsilon, norm)


def _inside_ball(images: Array, delta: Array, epsilon, norm: str) -> Array:
  """The images plus delta; l2: delta scaled to length epsilon, then clipped to [0, 1]; l1: projected on both."""
  if norm == "l1":
    return _l1.project(images + delta, images, epsilon)
  ball = threat_model.get_norm(norm)
  length = jnp.maximum(ball.length(delta), _TINY)[:, None, None, None]
  return threat_model.project(images + epsilon * delta / length, images, epsilon, ball)


def _pattern_proposal(images: Array, epsilon, p_init: float, norm: str) -> tuple[int, Propose]:
  """The number of draws per query, and the proposal: the norm of one window, and what is unused, moves to another."""
  _, height, width, channels = images.shape
  sides = window_sides(height, width, p_init, norm)
  patterns = np.zeros((len(sides), max(sides), max(sides)), np.float32)
  for pattern, side in zip(patterns, sides, strict=True):
    pattern[:side, :side] = window_pattern(side, norm)
  length = threat_model.get_norm(norm).length
  if norm == "l2":
    size = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True))
    budget = lambda spent, moved: jnp.sqrt(jnp.maximum(epsilon**2 - spent**2, 0.0) / channels + moved**2)
  else:
    size = lambda x: jnp.sum(jnp.abs(x), axis=(1, 2), keepdims=True)
    budget = lambda spent, moved: jnp.maximum(epsilon - spent, 0.0) + moved * channels

  def propose(draws: Array, best: Array, query: Array) -> Array:
    stage = _stage(query)
    side = jnp.array(sides)[stage]
    rows, columns = _offsets(draws[:, 0], side, height), _offsets(draws[:, 1], side, width)
    window = _inside(rows, columns, side)
    emptied = _inside(_offsets(draws[:, 2], side, height), _offsets(draws[:, 3], side, width), side)
    delta = best - images
    pattern = _placed(jnp.array(patterns)[stage], rows, columns, draws[:, 4] < 0.5)
    old = jnp.where(window, delta, 0.0)
    new = jnp.where(window, pattern * _signs(draws[:, 5:])[:, None, None, :] + old / (size(old) + _TINY), 0.0)
    moved = size(jnp.where(window | emptied, delta, 0.0))
    new *= budget(length(delta)[:, None, None, None], moved) / (size(new) + _TINY)
    return _inside_ball(images, jnp.where(window, new, jnp.where(emptied, 0.0, delta)), epsilon, norm)

  return 5 + channels, propose


@entry(num_queries=0, p_init="(0, 1]")
def square(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar,
  norm: str = "linf",
  num_queries: int = 5000,
  p_init: float = 0.8,
  targets: Labels | None = None,
) -> AttackResult:
  """The Square attack (Andriushchenko et al., arXiv:1912.00049), margin loss, with the schedule of AutoAttack.

  Black-box random search: a query changes one square window of the best point so far, and the change is kept if the
  margin rises or the model is fooled. The share of the image that a window covers starts at `p_init` and halves after
  queries 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000. The loop ends when the attack has succeeded on the whole
  batch. Elsewhere epsilon is `eps` and num_queries `n_queries`.

  Deliberate differences from AutoAttack's Square:
    - windows, signs and patterns are drawn for each image, not once for the batch, so that an image's result does not
      depend on its batch;
    - a tie of logits counts as fooled only if the model's prediction is another class;
    - an image on which the attack fails is returned at its best point, not unchanged;
    - images need not be square.

  Args:
    key: a typed key, which is split over the batch, or one key per image [batch].
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    epsilon: radius of the ball. May be traced.
    norm: "linf", "l2" or "l1".
    num_queries: queries for each image, after the one for the starting point.
    p_init: share of the image's area that the first windows cover, in (0, 1].
    targets: int [batch], target classes, which must differ from the labels: the margin is z_t - max_{k != t} z_k (the
      original's targeted form uses log p_t), and the attack succeeds if the prediction is the target.

  Returns:
    AttackResult: inside the ball; unchanged if the model is wrong on the clean image (with targets: if it predicts the
    target). `surviving_steps`: number of queries (including the start) that the model classifies correctly before the
    attack succeeds, in 0..num_queries + 1.

  Raises:
    ValueError: an argument outside the values listed here.
  """
  if norm == "linf":
    start, (num_draws, propose) = _linf_start(key, images, epsilon), _linf_proposal(images, epsilon, p_init)
  else:
    start = _tiles_start(key, images, epsilon, norm)
    num_draws, propose = _pattern_proposal(images, epsilon, p_init, norm)

  ask_next = lambda best, query: propose(_draws(key, query + 1, num_draws), best, query)
  return _search.search(logits_fn, images, labels, start, ask_next, num_queries, targets)
