"""Square: random search over square windows. It needs the model's outputs alone, no gradient."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrat_jax.attacks import _l1, _search, threat_model
from lrat_jax.attacks._entry import AttackResult, entry
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn, Scalar

# The windows' share of the image halves after each of these queries, however many queries there are.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# The exponent with which a window's pattern falls off from its two centres.
_FALL_OFF = {"l2": 2, "l1": 4}
# The first perturbation of the l2 and l1 attacks has this many tiles along the image.
_TILES = 5
_TINY = 1e-12

# (draws [batch, n] in [0, 1), best points, query) -> the points to ask about next.
Propose = Callable[[Array, Array, Array], Array]


def window_sides(height: int, width: int, p_init: float, norm: str) -> tuple[int, ...]:
  """The windows' side in pixels at each stage of the schedule: windows of area p * height * width, p halving.

  The l2 and l1 windows are odd and 3 pixels or more, so that their pattern has a centre, unless the image is smaller.
  """
  sides = [round(math.sqrt(p_init / 2**stage * height * width)) for stage in range(len(_HALVINGS) + 1)]
  if norm != "linf":
    sides = [max(side, 3) + (max(side, 3) % 2 == 0) for side in sides]
  return tuple(min(max(side, 1), height, width) for side in sides)


def _cone(height: int, width: int, exponent: int) -> np.ndarray:
  """sum over m >= d of 1 / (m + 1)^exponent, with d the distance (in king's moves) from the middle. [height, width]."""
  reach = max(height, width) // 2 + 1
  steps = 1.0 / np.arange(1, reach + 1) ** exponent
  sums = np.cumsum(steps[::-1])[::-1]
  rows, columns = np.arange(height)[:, None] - height // 2, np.arange(width) - width // 2
  return sums[np.maximum(abs(rows), abs(columns))]


def window_pattern(side: int, norm: str) -> np.ndarray:
  """The l2 and l1 attacks' window: a positive cone above a negative one, of unit norm together. [side, side]."""
  size = {"l2": lambda x: np.sqrt(np.sum(x**2)), "l1": lambda x: np.sum(abs(x))}[norm]
  halves = [_cone(rows, side, _FALL_OFF[norm]) for rows in (side // 2, side - side // 2) if rows]
  signs = (1, -1)[-len(halves) :]  # of a single row only the lower half is left
  pattern = np.concatenate([sign * half / size(half) for sign, half in zip(signs, halves, strict=True)])
  return pattern / size(pattern)


def _draws(keys: Array, query: int | Array, count: int) -> Array:
  """Uniform in [0, 1), [batch, count], fresh for each image and query."""
  return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, query), (count,)))(keys)


def _signs(draws: Array) -> Array:
  return jnp.where(draws < 0.5, -1.0, 1.0)


def _offsets(draws: Array, side: Array, extent: int) -> Array:
  """[batch, extent]: how far each pixel lies behind the start of a window of that side, placed by draws [batch].

  As in the original, the last place is never drawn, so the last row and column keep their start.
  """
  start = jnp.floor(draws * (extent - side)).astype(jnp.int32)
  return jnp.arange(extent) - start[:, None]


def _inside(rows: Array, columns: Array, side: Array) -> Array:
  """The windows' pixels, bool [batch, h, w, 1], from the pixels' offsets."""
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
  """How many draws a query takes, and the query: one window set to +-epsilon, of one sign a channel."""
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
  """The pattern [side, side] at the pixels' offsets, transposed where `flip` [batch]: [batch, h, w, 1]."""
  side = patterns.shape[0]
  rows, columns = (jnp.clip(offsets, 0, side - 1) for offsets in (rows[:, :, None], columns[:, None, :]))
  index = jnp.where(flip[:, None, None], columns * side + rows, rows * side + columns)
  return patterns.reshape(-1)[index][..., None]


def _tiles_start(keys: Array, images: Array, epsilon, norm: str) -> Array:
  """Tiles of the windows' pattern, each with its own sign a channel, brought into the ball."""
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
  """The images plus delta; l2: scaled to length epsilon, then cut to [0, 1]; l1: projected on both together."""
  if norm == "l1":
    return _l1.project(images + delta, images, epsilon)
  ball = threat_model.get_norm(norm)
  length = jnp.maximum(ball.length(delta), _TINY)[:, None, None, None]
  return threat_model.project(images + epsilon * delta / length, images, epsilon, ball)


def _pattern_proposal(images: Array, epsilon, p_init: float, norm: str) -> tuple[int, Propose]:
  """How many draws a query takes, and the query: one window's perturbation moves, with what is left, to another."""
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

  Black-box random search: a query changes one square window of the best point so far and is kept if the margin
  rises or the model is fooled. The share of the image that a window covers begins at `p_init` and halves after
  queries 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000. The loop ends when the whole batch is fooled. Elsewhere
  epsilon is `eps` and num_queries `n_queries`.

  Deliberate differences to AutoAttack's Square:
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
    num_queries: queries for each image, after the one for its start.
    p_init: share of the image's area that the first windows cover, in (0, 1].
    targets: int [batch], target classes, none the image's label: the margin is z_t - max_{k != t} z_k (the
      original's targeted form takes log p_t), and success is that the prediction is the target.

  Returns:
    AttackResult: inside the ball; unchanged where the model is wrong on the clean image (with targets: where it
    predicts the target). `surviving_steps`: queries (the start's included) that the model gets right before that, in
    0..num_queries + 1.

  Raises:
    ValueError: an argument outside what is listed here.
  """
  if norm == "linf":
    start, (num_draws, propose) = _linf_start(key, images, epsilon), _linf_proposal(images, epsilon, p_init)
  else:
    start = _tiles_start(key, images, epsilon, norm)
    num_draws, propose = _pattern_proposal(images, epsilon, p_init, norm)

  ask_next = lambda best, query: propose(_draws(key, query + 1, num_draws), best, query)
  return _search.search(logits_fn, images, labels, start, ask_next, num_queries, targets)
