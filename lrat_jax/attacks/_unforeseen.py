"""Attacks that move, recolour or cover an image instead of adding to it: gradient ascent on what they are made of."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from lrat_jax.attacks import latents, losses
from lrat_jax.attacks._ascent import ascent, strongest
from lrat_jax.attacks._entry import AttackResult, entry
from lrat_jax.core.arguments import check_choice
from lrat_jax.core.typing import Images, Keys, Labels, LogitsFn, Scalar


@entry(epsilon="[0, 1e6]", num_steps=0, num_restarts=1)
def unforeseen(
  key: Keys,
  logits_fn: LogitsFn,
  images: Images,
  labels: Labels,
  *,
  kind: str,
  epsilon: Scalar,
  step_size: Scalar | None = None,
  num_steps: int = 20,
  loss: str = "ce",
  num_restarts: int = 1,
) -> AttackResult:
  """Projected gradient ascent on the latent o of a decoder A(x, o), from a random latent of its ball.

  What stands in brackets is the unit of epsilon, and `lrat_jax.attacks.latents.KINDS` has the strengths of CIFAR-10.

  - "stadv" [half a side]: every pixel is taken from elsewhere, by a flow (Xiao et al., arXiv:1801.02612), bounded as in
    perceptual-advex and MultiRobustBench.
  - "elastic" [pixels]: the same by a smoothed flow (Kang et al., arXiv:1908.08016).
  - "recolor" [a grid over CIELUV scaled to [0, 1]]: every colour becomes another one (ReColorAdv, Laidlaw & Feizi,
    arXiv:1906.00001). Grey images get a curve of grey values.
  - "jpeg_linf", "jpeg_l1" [steps of quantisation at quality 50; a latent counts half]: the coefficients of JPEG change
    (Kang et al.); "jpeg_l1" takes Frank-Wolfe's steps, and no step size.
  - "hsv" [hue in turns, saturation and value in [0, 1]]: a smoothed change of these; of grey images, of their value.
  - "pixel" [L2 of shares in [0, 1]]: blocks of 4x4 pixels become flat.
  - "gabor" [height of a wave]: waves of one random frequency at random places.
  - "fog" [density at the coarsest points]: fog from the diamond-square algorithm.
  - "glitch" [half the width]: bars move sideways, each channel by itself.

  The last five are those of Kaufmann et al. (arXiv:1908.08016v3).

  Args:
    key: a typed key or one per image [batch].
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1]; for "recolor" and "hsv" of one or three channels.
    labels: int [batch].
    kind: one of the above.
    epsilon: radius of the latent's ball; 0 returns the images. May be traced.
    step_size: length of a step in the latent's norm; None is epsilon / sqrt(num_steps), as in Kang et al.
    num_steps: number of gradient steps.
    loss: "ce", "cw", "margin", "dlr" or "kl", as in `pgd`.
    num_restarts: independent runs; per image a point that fools the model wins, then the highest loss.

  Returns:
    AttackResult: as of `pgd`.

  Raises:
    ValueError: an argument outside what is listed here; the message gives its name and the choices.
  """
  check_choice(kind, "kind", list(latents.KINDS))
  chosen, image_shape = latents.KINDS[kind], images.shape[1:]
  latents.check(kind, epsilon, image_shape)
  if chosen.ball.towards_vertices and step_size is not None:
    raise ValueError(f"step_size is no argument of kind={kind!r}, which sets its own.")
  surrogate = losses.surrogate(loss, logits_fn, images, labels)
  length = epsilon / math.sqrt(max(num_steps, 1)) if step_size is None else step_size

  def advance(step: Array, latent: Array, gradient: Array) -> Array:
    return chosen.ball.advance(step, latent, gradient, epsilon, length)

  def run(run_keys: Array) -> AttackResult:
    start_keys, draw_keys = jnp.moveaxis(jax.vmap(jax.random.split)(run_keys), 1, 0)
    drawn = jax.vmap(lambda key: chosen.draw(key, image_shape))(draw_keys)
    decode = lambda latent: jnp.clip(jax.vmap(chosen.decode)(images, latent, drawn), 0.0, 1.0)
    start = chosen.ball.sample(start_keys, chosen.shape(image_shape), epsilon).astype(images.dtype)
    return ascent(logits_fn, labels, surrogate, advance, num_steps, decode)(start, run_keys)

  return strongest(run, key, num_restarts, logits_fn, labels, surrogate)
