"""Multi steepest descent: an attack in several norms at once; each step is in the norm that raises the loss most."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from lrat_jax.attacks import losses, threat_model
from lrat_jax.attacks._entry import AttackResult, entry, finished
from lrat_jax.attacks._pgd import stepped
from lrat_jax.attacks.threat_model import per_image
from lrat_jax.core.arguments import check_choice
from lrat_jax.core.typing import Distributions, Images, Keys, Labels, LogitsFn, Scalar

LOSSES = tuple(name for name in losses.LOSSES if name != "kl")  # KL has no gradient at the clean image


@entry(num_steps=0, sparsity="[0, 1]")
def msd(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  radii: Mapping[str, Scalar],
  step_sizes: Mapping[str, Scalar],
  num_steps: int,
  loss: str = "ce",
  sparsity: Scalar = 0.99,
  label_distributions: Distributions | None = None,
) -> AttackResult:
  """Multi steepest descent (Maini et al., arXiv:1909.04068, section 4.2): an attack on the union of several balls.

  It starts from the image, x^0. Each step computes the step of `pgd` in every norm, projected on that norm's ball, and
  takes the one with the highest loss: x^{k+1} = argmax_p loss(P_p(x^k + step_size_p d_p(grad loss(x^k)))), separately
  for each image. A step needs one gradient, and one forward pass per norm. Works under `jit` and `shard_map`.

  Args:
    key: a typed key or one per image [batch]; not used, because the attack is deterministic.
    logits_fn, images, labels: as for `pgd`.
    radii: epsilon of each norm's ball, such as {"linf": 8 / 255, "l2": 0.5, "l1": 12}; at least one norm. May be
      traced. In the paper's code `epsilon_l_inf` and so on.
    step_sizes: length of a step in each of these norms. In the paper's code `alpha_l_inf` and so on.
    num_steps: number of steps K.
    loss: "ce", "cw", "margin" or "dlr".
    sparsity: sparsity of the L1 steps, as for `pgd`.
    label_distributions: as for `pgd`.

  Returns:
    AttackResult, with the image of highest loss among x^0..x^K; it is in at least one of the balls, not always in all.

  Raises:
    ValueError: an argument outside the values listed here; the message gives its name and the choices.
  """
  check_choice(loss, "loss", LOSSES)
  if set(radii) != set(step_sizes):
    raise ValueError(
      f"step_sizes has the norms {sorted(step_sizes)}, but radii has {sorted(radii)}; use the same norms in both."
    )
  surrogate = losses.surrogate(loss, logits_fn, images, labels, label_distributions=label_distributions)

  def score(points: Array) -> Array:
    found = surrogate(logits_fn(points))
    return jnp.where(threat_model.finite(points), jnp.nan_to_num(found, nan=-jnp.inf), -jnp.inf)

  def total_loss(points: Array) -> tuple[Array, Array]:
    logits = logits_fn(points)
    return jnp.sum(surrogate(logits)), logits

  def advance(_, carry):
    points, best, best_score, survived, broken = carry
    gradient, logits = jax.grad(total_loss, has_aux=True)(points)
    survived += losses.is_correct(logits, labels).astype(jnp.int32)
    broken += (~threat_model.finite(gradient)).astype(jnp.int32)
    gradient = threat_model.numbers(gradient)
    tried = jnp.stack([
      stepped(points, gradient, images, norm=n, epsilon=radii[n], step_size=step_sizes[n], sparsity=sparsity)
      for n in sorted(radii)
    ])  # fmt: skip
    scores = jax.lax.map(score, tried)  # one norm after another, so that the model is compiled only once, for one batch
    chosen = jnp.argmax(scores, axis=0)
    points = jnp.take_along_axis(tried, per_image(chosen, images.ndim)[None], axis=0)[0]
    reached = jnp.max(scores, axis=0)
    best = jnp.where(per_image(reached > best_score), points, best)
    return points, best, jnp.maximum(best_score, reached), survived, broken

  # From the labels, not from a constant: under shard_map a carry must vary over devices from the start.
  none = 0 * labels.astype(jnp.int32)
  start = (images, images, score(images), none, none)
  _, best, _, survived, broken = jax.lax.fori_loop(0, num_steps, advance, start)
  return finished(logits_fn, labels, best, survived, broken)
