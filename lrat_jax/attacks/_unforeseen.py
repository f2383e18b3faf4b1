"""Attacks that warp, recolour or overlay an image instead of adding noise: gradient ascent on their latents."""

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
  """Projected gradient ascent on the latent o of a decoder A(x, o), from a random latent in its ball.

  The unit of epsilon is in brackets. `lrat_jax.attacks.latents.KINDS` has the usual strengths for CIFAR-10.

  - "stadv" [half a side]: a flow moves the place from which each pixel is sampled (Xiao et al., arXiv:1801.02612),
    bounded as in perceptual-advex and MultiRobustBench.
  - "elastic" [pixels]: the same with a smoothed flow (Kang et al., arXiv:1908.08016).
  - "recolor" [CIELUV scaled to [0, 1]]: a grid over the colours maps each colour to another one (ReColorAdv, Laidlaw &
    Feizi, arXiv:1906.00001). For grey images it is a curve over the grey values.
  - "jpeg_linf", "jpeg_l1" [quantisation steps at quality 50; a latent of 1 is half a step]: JPEG coefficients change
    (Kang et al.); "jpeg_l1" uses Frank-Wolfe steps, and takes no step size.
  - "hsv" [hue in turns, saturation and value in [0, 1]]: a smoothed change of these; for grey images, of their value.
  - "pixel" [L2 of shares in [0, 1]]: blocks of 4x4 pixels become flat.
  - "gabor" [amplitude of a wave]: waves of one random frequency at random places.
  - "fog" [density at the coarsest points]: fog from the diamond-square algorithm.
  - "glitch" [half the width]: horizontal bars move sideways, each channel separately.

  The last five are those of Kaufmann et al. (arXiv:1908.08016v3).

  Args:
    key: a typed key or one per image [batch].
    logits_fn: images -> logits [batch, classes].
    images: float [batch, h, w, c] in [0, 1]; for "recolor" and "hsv" with one or three channels.
    labels: int [batch].
    kind: one of the above.
    epsilon: radius of the latent's ball; 0 returns the images. May be traced.
    step_size: length of a step in the latent's norm; by default epsilon / sqrt(num_steps), as in Kang et al.
    num_steps: number of gradient steps.
    loss: "ce", "cw", "margin", "dlr" or "kl", as in `pgd`.
    num_restarts: number of independent runs; for each image a run that fools the model is returned, else the run with
      the highest loss.

  Returns:
    AttackResult: as for `pgd`.

  Raises:
    ValueError: an argument outside the values listed here; the message gives its name and the choices.
  """
  check_choice(kind, "kind", list(latents.KINDS))
  chosen, image_shape = latents.KINDS[kind], images.shape[1:]
  latents.check(kind, epsilon, image_shape)
  if chosen.ball.towards_vertices and step_size is not None:
    raise ValueError(f"step_size is not an argument of kind={kind!r}, which sets its own.")
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
