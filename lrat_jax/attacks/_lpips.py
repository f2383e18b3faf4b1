"""The Lagrangian attack in balls of LPIPS, a distance that the layers of a network measure, as of the model itself."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from lrat_jax.attacks import losses, threat_model
from lrat_jax.attacks._entry import AttackResult, entry, finished
from lrat_jax.attacks.threat_model import per_image
from lrat_jax.core.arguments import shown
from lrat_jax.core.typing import FeaturesFn, Images, Keys, Labels, LogitsFn, PerImage, Scalar

# Below these, squared lengths have no gradient; they are far from those of any float32 activation that matters.
_TINY_SQUARE = 1e-20
_TINY_SLOPE = 1e-8
# The constants of the original: deviation of the start, how far ahead the distance's slope is taken, the share of the
# first step that is left for the last, the penalty's first weight and what a round multiplies it by, and the margin
# that is enough.
_START, _AHEAD, _LAST_SHARE, _FIRST_WEIGHT, _RISE, _ENOUGH = 0.01, 0.1, 0.1, 0.01, 10.0, 1.0
_HALVINGS = 15


def _check_layer(layer: Any, batch: int) -> None:
  """Refuses what is no layer's activations. Raises ValueError."""
  is_array = isinstance(layer, jax.Array) and jnp.issubdtype(layer.dtype, jnp.floating)
  if not is_array or layer.ndim != 4 or layer.shape[0] != batch:
    found = f"{layer.dtype} {layer.shape}" if isinstance(layer, jax.Array) else type(layer).__name__
    raise ValueError(f"features_fn returns a list of {found}; it must be of float arrays [{batch}, h, w, c].")


def _embedded(features_fn: FeaturesFn, images: Array) -> Array:
  """Activations as one vector an image [batch, n], of which differences are as long as LPIPS says.

  At each place channels are scaled to length 1; a layer counts as the mean over its places. Raises ValueError.
  """
  layers, vectors = features_fn(images), []
  if not isinstance(layers, list | tuple) or not layers:
    raise ValueError(f"features_fn returns {type(layers).__name__}; it must return a list of one array or more.")
  for layer in layers:
    _check_layer(layer, images.shape[0])
    layer = layer.astype(jnp.promote_types(layer.dtype, jnp.float32))
    batch, height, width, _ = layer.shape
    squares = jnp.sum(jnp.square(layer), axis=-1, keepdims=True)
    unit = layer * lax.rsqrt(jnp.maximum(squares, _TINY_SQUARE))
    vectors.append(unit.reshape(batch, -1) / math.sqrt(height * width))
  return jnp.concatenate(vectors, axis=1)


def _length(vectors: Array) -> PerImage:
  """The lengths of vectors [batch, n], with a gradient of 0 where they are 0."""
  return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(vectors), axis=1), _TINY_SQUARE))


def lpips_distance(features_fn: FeaturesFn, images: Images, others: Images) -> PerImage:
  """LPIPS between images and others [batch, h, w, c] (Zhang et al., arXiv:1801.03924), all channels counting alike.

  The root of the sum over layers of the mean over places of |u - v|^2, with u and v the two images' activations there,
  of length 1 (Laidlaw et al., arXiv:2006.12655, equation 2).

  Args:
    features_fn: images -> activations [batch, h, w, c], one array a layer.
  """
  return threat_model.get_norm("l2").length(_embedded(features_fn, images) - _embedded(features_fn, others))


def _brought_back(features_fn: FeaturesFn, images: Array, points: Array, epsilon: Scalar) -> Array:
  """Points beyond the ball moved along the line to their image until they are in it, by bisection."""
  clean = _embedded(features_fn, images)
  at = lambda shares: images + per_image(shares) * (points - images)

  def is_inside(shares: Array) -> Array:
    return threat_model.get_norm("l2").length(_embedded(features_fn, at(shares)) - clean) <= epsilon

  def halve(_, interval: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = interval
    middle = (low + high) / 2
    inside = is_inside(middle)
    return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

  none = 0.0 * images[:, 0, 0, 0]
  whole = is_inside(none + 1)
  low, _ = lax.fori_loop(0, _HALVINGS, halve, (none, none + 1))
  return jnp.where(per_image(whole), points, at(low))


@entry(epsilon="[0, 1e6]", num_steps=0, num_rounds=1)
def lpips(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar,
  features_fn: FeaturesFn | None = None,
  num_steps: int = 20,
  num_rounds: int = 5,
  targets: Labels | None = None,
) -> AttackResult:
  """The Lagrangian perceptual attack (LPA, Laidlaw et al., arXiv:2006.12655, section 4 and appendix A.2).

  Ascent on min(margin, 1) - weight * max(LPIPS - epsilon, 0), along the gradient, by steps of a length in LPIPS: from
  epsilon, falling to a tenth of it. After each round the weight is ten times as large for images that lie beyond the
  ball. An image is done with the first point in the ball that fools the model; of others the last is brought back into
  it. With the activations of the model that is attacked the ball is the paper's self-bounded one.

  Args:
    key: a typed key or one per image [batch], for the start at 0.01 * N(0, 1) from the image.
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    epsilon: radius, in LPIPS (`lpips_distance`); 0 returns the images. May be traced. The paper's are 0.5 and 1.
    features_fn: images -> activations float [batch, h, w, c], one array a layer, as the outputs of a network's stages.
      In a suite it is the evaluated model's own, if that is a network of `lrat_jax.models` or sows "features".
    num_steps: steps of a round.
    num_rounds: rounds, 1 or more.
    targets: int [batch], target classes, none the image's label: the margin is z_t - max_{k != t} z_k.

  Returns:
    AttackResult: `surviving_steps` counts the steps before which the model was right, in the ball or not, in
    0..num_steps * num_rounds.

  Raises:
    ValueError: an argument outside what is listed here, or features_fn is missing.
  """
  if not callable(features_fn):
    raise ValueError(f"features_fn={shown(features_fn)}: lpips needs a function that gives a model's activations.")
  clean = _embedded(features_fn, images)

  def objective(points: Array, weights: Array) -> tuple[Array, tuple[Array, Array]]:
    logits, vectors = logits_fn(points), _embedded(features_fn, points)
    margin = losses.margin(logits, labels) if targets is None else -losses.margin(logits, targets)
    beyond = jnp.maximum(_length(vectors - clean) - epsilon, 0.0)
    return jnp.sum(jnp.minimum(margin, _ENOUGH) - weights * beyond), (logits, vectors)

  def step(carry):
    index, points, weights, done, survived, broken = carry
    gradient, (logits, vectors) = jax.grad(objective, has_aux=True)(points, weights)
    outside = threat_model.get_norm("l2").length(vectors - clean) > epsilon
    done |= losses.is_adversarial(logits, labels, targets) & ~outside
    survived += (~done & losses.is_correct(logits, labels)).astype(jnp.int32)
    broken += (~done & ~threat_model.finite(gradient)).astype(jnp.int32)
    direction = threat_model.get_norm("l2").steepest(threat_model.numbers(gradient))
    slope = _length(_embedded(features_fn, points + _AHEAD * direction) - vectors) / _AHEAD
    share = jnp.asarray(index % num_steps, points.dtype) / num_steps
    size = epsilon * _LAST_SHARE**share / (slope + _TINY_SLOPE)
    moved = jnp.clip(points + per_image(size) * direction, 0.0, 1.0)
    rises = outside & (index % num_steps == num_steps - 1)
    points = jnp.where(per_image(done), points, moved)
    return index + 1, points, jnp.where(rises, _RISE * weights, weights), done, survived, broken

  noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(key)
  start = jnp.clip(images + _START * noise.astype(images.dtype), 0.0, 1.0)
  # From the images and labels, not from constants: under shard_map a carry must vary over devices from the start.
  weights, none = 0.0 * images[:, 0, 0, 0] + _FIRST_WEIGHT, 0 * labels
  unfinished = lambda carry: (carry[0] < num_steps * num_rounds) & ~jnp.all(carry[3])
  carry = (jnp.int32(0), start, weights, labels != labels, none, none)
  _, points, _, _, survived, broken = lax.while_loop(unfinished, step, carry)
  points = _brought_back(features_fn, images, points, epsilon)
  return finished(logits_fn, labels, points, survived, broken, targets)
