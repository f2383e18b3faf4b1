"""SPSA: projected gradient ascent with gradients that are estimated from the model's logits."""

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from lrat_jax.attacks import losses, threat_model
from lrat_jax.attacks._entry import AttackResult, entry, finished
from lrat_jax.attacks.threat_model import per_image
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn, Scalar


def _estimate(loss, keys: Array, points: Array, delta: float, num_samples: int) -> Array:
  """Estimates the gradient of a loss [batch]: the mean over pairs of points that differ by 2 delta in each component.

  If clipping to [0, 1] brings the points of a pair closer together, the difference of the loss is divided by their
  distance after clipping.
  """

  def pair(index, total):
    draw = lambda key: jax.random.rademacher(jax.random.fold_in(key, index), points.shape[1:])
    signs = jax.vmap(draw)(keys).astype(points.dtype)
    ahead, behind = (jnp.clip(points + side * delta * signs, 0.0, 1.0) for side in (1.0, -1.0))
    slopes = per_image(loss(ahead) - loss(behind)) / (ahead - behind)
    return total + threat_model.numbers(slopes)

  return lax.fori_loop(0, num_samples, pair, 0.0 * points) / num_samples


@entry(norm=("linf",), num_steps=0, num_samples=1, delta="(0, 1]", learning_rate="(0, 1e6]")
def spsa(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  epsilon: Scalar,
  norm: str = "linf",
  num_steps: int = 100,
  num_samples: int = 128,
  delta: float = 0.01,
  learning_rate: float = 0.01,
  targets: Labels | None = None,
) -> AttackResult:
  """Simultaneous perturbation stochastic approximation, a score-based attack (Uesato et al., arXiv:1802.05666, 4.1).

  Adam maximises the margin with a gradient that is estimated from the margins of random pairs of points, and each step
  is projected on the ball and [0, 1]. The attack uses only logits, which helps if gradients are masked. It ends for an
  image at the first point that succeeds, and the loop ends when all images are done. In torchattacks it is `SPSA`, with
  num_steps as `nb_iter`, num_samples as `nb_sample` and learning_rate as `lr`.

  Args:
    key: a typed key, which is split over the batch, or one key per image [batch].
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1].
    labels: int [batch].
    epsilon: radius of the ball. May be traced.
    norm: "linf", the only one.
    num_steps: steps of Adam.
    num_samples: pairs of points per step, so 2 * num_samples + 1 queries per step.
    delta: distance of a pair's points from the current point, in each component.
    learning_rate: learning rate of Adam, in units of the image range.
    targets: int [batch], target classes, which must differ from the labels; the attack succeeds if the prediction is
      the target.

  Returns:
    AttackResult: the first point that succeeds, else the last; unchanged if the model is wrong on the clean image (with
    targets: if it predicts the target). `surviving_steps`: number of iterates that the model classifies correctly.

  Raises:
    ValueError: an argument outside the values listed here.
  """
  ball, optimizer = threat_model.get_norm(norm), optax.adam(learning_rate)
  margin = losses.surrogate("margin", logits_fn, images, labels, targets)

  def step(carry):
    index, points, moments, done, survived = carry
    keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(key)
    gradient = _estimate(lambda asked: margin(logits_fn(asked)), keys, points, delta, num_samples)
    update, moments = optimizer.update(-gradient, moments)
    ahead = threat_model.project(points + update, images, epsilon, ball)
    points = jnp.where(per_image(done), points, ahead)
    logits = logits_fn(points)
    survived += (losses.is_correct(logits, labels) & ~done).astype(jnp.int32)
    return index + 1, points, moments, done | losses.is_adversarial(logits, labels, targets), survived

  logits = logits_fn(images)
  done = losses.is_adversarial(logits, labels, targets)
  survived = (losses.is_correct(logits, labels) & ~done & (num_steps > 0)).astype(jnp.int32)
  # Under shard_map, carries must vary over devices as the images do.
  moments = jax.tree.map(lambda x: x + 0 * images if x.shape == images.shape else x, optimizer.init(images))
  unfinished = lambda carry: (carry[0] < num_steps) & ~jnp.all(carry[3])
  _, points, _, _, survived = lax.while_loop(unfinished, step, (0, images, moments, done, survived))
  return finished(logits_fn, labels, points, jnp.minimum(survived, num_steps), targets=targets)
