"""MixUp and CutMix on the device: each image of a batch is mixed with the next one, with its own random key."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from lrat_jax.core.typing import AxisName, Distributions, Images, KeyPerImage


def next_rows(rows: Any, axis_name: AxisName) -> Any:
  """Replaces each row r of the global batch by row r + 1, and the last row by the first, in a tree of arrays [b, ...].

  The loader shuffles a batch, so the next image is a random other one. This choice of a partner is the same on any
  number of devices and needs little communication: each device sends one row to the device before it, once.
  """
  size = lax.axis_size(axis_name)
  to_the_one_before = [(device, (device - 1) % size) for device in range(size)]

  def shifted(x: Array) -> Array:
    return jnp.concatenate([x[1:], lax.ppermute(x[:1], axis_name, to_the_one_before)])

  return jax.tree.map(shifted, rows)


def mix(
  keys: KeyPerImage,
  images: Images,
  labels: Distributions,
  other_images: Images,
  other_labels: Distributions,
  *,
  mixup: float,
  cutmix: float,
) -> tuple[Images, Distributions]:
  """Mixes images and labels with other ones, with a separate share lambda ~ Beta(alpha, alpha) for each image.

  MixUp (Zhang et al., arXiv:1710.09412): lambda x + (1 - lambda) x'. CutMix (Yun et al., arXiv:1905.04899, appendix A):
  a box of x', centred anywhere in the image, with sides sqrt(1 - lambda) times those of the image and clipped at the
  edges; lambda is then the share of pixels outside the box. Labels are mixed in the same shares.

  Args:
    keys: one per image [batch].
    images, other_images: float [batch, h, w, c].
    labels, other_labels: float [batch, classes], distributions.
    mixup, cutmix: alpha of each; 0 is off. If both are on, each image gets one of them, with probability 1/2.
  """

  def one(key: Array, image: Array, label: Array, other: Array, other_label: Array) -> tuple[Array, Array]:
    coin_key, share_key, box_key = jax.random.split(key, 3)
    if cutmix:
      cut, cut_share = _cut(share_key, box_key, image, other, cutmix)
    if mixup:
      share = jax.random.beta(share_key, mixup, mixup)
      image = share * image + (1.0 - share) * other
    if mixup and cutmix:
      cuts = jax.random.bernoulli(coin_key)
      image, share = jnp.where(cuts, cut, image), jnp.where(cuts, cut_share, share)
    elif cutmix:
      image, share = cut, cut_share
    return image, share * label + (1.0 - share) * other_label

  if not (mixup or cutmix):
    return images, labels
  return jax.vmap(one)(keys, images, labels, other_images, other_labels)


def _cut(share_key: Array, box_key: Array, image: Array, other: Array, alpha: float) -> tuple[Array, Array]:
  """CutMix's image, and the share of its pixels from `image`. Sides are rounded as in the authors' code."""
  height, width, _ = image.shape
  side = jnp.sqrt(1.0 - jax.random.beta(share_key, alpha, alpha))
  middle = jax.random.randint(box_key, (2,), 0, jnp.array([height, width]))
  half = jnp.floor(side * jnp.array([height, width])).astype(jnp.int32) // 2
  rows, columns = jnp.arange(height), jnp.arange(width)
  in_rows = (middle[0] - half[0] <= rows) & (rows < middle[0] + half[0])
  in_columns = (middle[1] - half[1] <= columns) & (columns < middle[1] + half[1])
  box = in_rows[:, None] & in_columns[None, :]
  return jnp.where(box[..., None], other, image), 1.0 - jnp.mean(box)
