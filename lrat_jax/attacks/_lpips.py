"""The Lagrangian attack in balls of LPIPS, a distance between activations of a network, such as the model itself."""

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

# Squared lengths below this have gradient 0; it is far below those of any relevant float32 activation.
_TINY_SQUARE = 1e-20
# Prevents division by 0 in the step size.
_TINY_SLOPE = 1e-8
# The constants of the original: standard deviation of the start, distance at which the slope of LPIPS is measured, last
# step size as a share of the first, initial weight of the penalty, its factor after each round, and the margin at which
# the loss is clipped.
_START, _AHEAD, _LAST_SHARE, _FIRST_WEIGHT, _RISE, _ENOUGH = 0.01, 0.1, 0.1, 0.01, 10.0, 1.0
_HALVINGS = 15


def _check_layer(layer: Any, batch: int) -> None:
  """Raises ValueError unless this is a layer's activations, float [batch, h, w, c]."""
  is_array = isinstance(layer, jax.Array) and jnp.issubdtype(layer.dtype, jnp.floating)
  if not is_array or layer.ndim != 4 or layer.shape[0] != batch:
    found = f"{layer.dtype} {layer.shape}" if isinstance(layer, jax.Array) else type(layer).__name__
    raise ValueError(f"features_fn returns a list of {found}; it must be a list of float arrays [{batch}, h, w, c].")


def _embedded(features_fn: FeaturesFn, images: Array) -> Array:
  """Activations as one vector per image [batch, n], such that the L2 distance between vectors is LPIPS.

  Channels are scaled to length 1 at each position, and each layer is averaged over its positions. Raises ValueError.
  """
  layers, vectors = features_fn(images), []
  if not isinstance(layers, list | tuple) or not layers:
    raise ValueError(f"features_fn returns {type(layers).__name__}; it must return a list of at least one array.")
  for layer in layers:
    _check_layer(layer, images.shape[0])
    layer = layer.astype(jnp.promote_types(layer.dtype, jnp.float32))
    batch, height, width, _ = layer.shape
    squares = jnp.sum(jnp.square(layer), axis=-1, keepdims=True)
    unit = layer * lax.rsqrt(jnp.maximum(squares, _TINY_SQUARE))
    vectors.append(unit.reshape(batch, -1) / math.sqrt(height * width))
  return jnp.concatenate(vectors, axis=1)


def _length(vectors: Array) -> PerImage:
  """The lengths of vectors [batch, n], with a gradient of 0 if a vector is 0."""
  return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(vectors), axis=1), _TINY_SQUARE))


def lpips_distance(features_fn: FeaturesFn, images: Images, others: Images) -> PerImage:
  """LPIPS between images and others [batch, h, w, c] (Zhang et al., arXiv:1801.03924), with equal weights of channels.

  The square root of the sum over layers of the mean over positions of |u - v|^2, where u and v are the two images'
  activations at that position, scaled to length 1 (Laidlaw et al., arXiv:2006.12655, equation 2).

  Args:
    features_fn: images -> activations [batch, h, w, c], one array per layer.
  """
  return threat_model.get_norm("l2").length(_embedded(features_fn, images) - _embedded(features_fn, others))


def _brought_back(features_fn: FeaturesFn, images: Array, points: Array, epsilon: Scalar) -> Array:
  """Moves points outside the ball along the line to their image until they are inside, by bisection."""
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

  Gradient ascent on min(margin, 1) - weight * max(LPIPS - epsilon, 0). Step sizes are measured in LPIPS, and decrease
  in each round from epsilon to a tenth of it. After each round, the weight is multiplied by ten for images outside the
  ball. An image is finished at its first adversarial in the ball; if there is none, the last point is moved back into
  the ball. With activations of the attacked model itself, this is the paper's self-bounded attack.

  Args:
    key: a typed key or one per image [batch], for the start: the image plus 0.01 * N(0, 1).
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    epsilon: radius, in LPIPS (`lpips_distance`); 0 returns the images. May be traced. The paper uses 0.5 and 1.
    features_fn: images -> activations float [batch, h, w, c], one array per layer, such as the outputs of a network's
      stages. In a suite, the evaluated model's activations are used, if it is a network of `lrat_jax.models` or sows
      "features".
    num_steps: steps per round.
    num_rounds: number of rounds, 1 or more.
    targets: int [batch], target classes, never the image's label: the margin is z_t - max_{k != t} z_k.

  Returns:
    AttackResult: `surviving_steps`, in 0..num_steps * num_rounds, counts the steps at whose start the model was right,
    inside the ball or not.

  Raises:
    ValueError: an argument outside the values listed here, or features_fn is missing.
  """
  if not callable(features_fn):
    raise ValueError(f"features_fn={shown(features_fn)}: lpips needs a function that returns a model's activations.")
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
  # Computed from images and labels, not constants: under shard_map, a loop carry must vary over devices from the start.
  weights, none = 0.0 * images[:, 0, 0, 0] + _FIRST_WEIGHT, 0 * labels
  unfinished = lambda carry: (carry[0] < num_steps * num_rounds) & ~jnp.all(carry[3])
  carry = (jnp.int32(0), start, weights, labels != labels, none, none)
  _, points, _, _, survived, broken = lax.while_loop(unfinished, step, carry)
  points = _brought_back(features_fn, images, points, epsilon)
  return finished(logits_fn, labels, points, survived, broken, targets)
