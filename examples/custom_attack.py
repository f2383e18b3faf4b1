"""A custom attack: MI-FGSM, which is PGD with momentum (Dong et al., arXiv:1710.06081). To train and evaluate with it:

python -m lrat_jax.main --config=examples/custom_config.py
"""

import jax
import jax.numpy as jnp

from lrat_jax import attacks
from lrat_jax.attacks import losses


def mi_fgsm(keys, logits_fn, images, labels, *, epsilon, step_size, num_steps, norm="linf", decay=1.0):
  """Steps along a decaying sum of the gradients so far, so that small bumps of the loss do not change the direction.

  Args:
    keys: one for each image [batch]. All randomness of an image must come from its own key, so that neither its batch
      nor the number of devices changes its result.
    logits_fn: images -> logits [batch, classes].
    images, labels: float [batch, h, w, c] in [0, 1], int [batch].
    epsilon, step_size, num_steps, norm, decay: the fields of the configuration's entry. While training ramps epsilon
      and the step size they are traced: calculate with them, but do not branch on them.

  Returns:
    AttackResult: images inside the ball and [0, 1], and the number of iterates at which the model was correct.
  """
  ball = attacks.get_norm(norm)

  def total_loss(points):
    logits = logits_fn(points)
    return jnp.sum(losses.cross_entropy(logits, labels)), logits  # a sum, so no image changes another's gradient

  def step(_, carry):
    points, momentum, survived = carry
    gradient, logits = jax.grad(total_loss, has_aux=True)(points)
    survived += losses.is_correct(logits, labels)
    size = jnp.mean(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
    momentum = decay * momentum + gradient / jnp.maximum(size, 1e-12)
    points = attacks.project(points + step_size * ball.steepest(momentum), images, epsilon, ball)
    return points, momentum, survived

  start = attacks.starting_points("uniform", keys, images, epsilon, ball)
  # Zeros computed from images and labels, not constants: a loop's carry must vary over devices from the start.
  points, _, survived = jax.lax.fori_loop(0, num_steps, step, (start, 0 * images, 0 * labels))
  return attacks.AttackResult(points, survived)
