"""MeanSparse: values near the mean of their channel are replaced by that mean (Amini et al., arXiv:2406.05927)."""

import functools
import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax import Array

from lrat_jax.core.typing import Images, Variables

# Collection and name of the moments of its input that a MeanSparse sows: mean and variance of each channel.
_MOMENTS = ("intermediates", "moments")


class MeanSparse(nn.Module):
  """Replaces values within `threshold` standard deviations of their channel's mean by that mean, with gradient 0.

  It is placed before activations, and at the other places where the published networks have it. Mean, variance and
  threshold are fitted to a trained network (`fit_mean_sparse`); training does not change them. Initially they are 0,
  which changes no value.
  """

  @nn.compact
  def __call__(self, x: Array) -> Array:
    mean, variance = (self.variable("batch_stats", name, jnp.zeros, x.shape[-1:]).value for name in ("mean", "var"))
    threshold = self.variable("batch_stats", "threshold", jnp.zeros, ()).value
    if self.is_mutable_collection(_MOMENTS[0]):
      places = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
      self.sow(*_MOMENTS, (jnp.mean(places, axis=0), jnp.var(places, axis=0, ddof=1)))
    reach = (threshold * jnp.sqrt(variance)).astype(x.dtype)
    mean = mean.astype(x.dtype)
    return jnp.where(jnp.abs(x - mean) < reach, mean, x)


def fit_mean_sparse(model: nn.Module, variables: Variables, batches: Iterable[Images], threshold: float) -> Variables:
  """The variables of a trained network with MeanSparse fitted to images, with the same threshold everywhere.

  As the authors do, mean and variance of each channel are averaged over batches, in evaluation mode and with threshold
  0. The authors choose the threshold by robust accuracy on training images.

  Args:
    model: made by `models.create(..., mean_sparse=True)`.
    variables: of the same network, with or without MeanSparse.
    batches: training images float [batch, h, w, c] in [0, 1], all batches of one size.
    threshold: in standard deviations, 0 or more.

  Raises:
    ValueError: the threshold is below 0, there are no images, or the network has no MeanSparse.
  """
  if not threshold >= 0:
    raise ValueError(f"threshold={threshold} must be 0 or more.")

  remaining = iter(batches)
  if (first := next(remaining, None)) is None:
    raise ValueError("batches is empty; MeanSparse needs at least one batch of images.")
  like = traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0), first).get("batch_stats", {}))
  places = [path[:-1] for path in like if path[-1] == "threshold"]
  if not places:
    raise ValueError("the network has no MeanSparse; create it with mean_sparse=True.")
  trained = traverse_util.flatten_dict(variables.get("batch_stats", {}))
  stats = {path: jnp.zeros(leaf.shape) if path[:-1] in places else trained[path] for path, leaf in like.items()}
  given = {"params": variables["params"], "batch_stats": traverse_util.unflatten_dict(stats)}
  measure = jax.jit(functools.partial(_measured, model))
  measured = [measure(given, images) for images in itertools.chain([first], remaining)]
  stats |= jax.tree.map(lambda *of: sum(of) / len(of), *measured)
  stats |= {(*place, "threshold"): jnp.float32(threshold) for place in places}
  return {"params": variables["params"], "batch_stats": traverse_util.unflatten_dict(stats)}


def _measured(model: nn.Module, variables: Variables, images: Images) -> dict[tuple[str, ...], Array]:
  """Mean and variance of the input of each MeanSparse, by their paths in batch_stats."""
  _, sown = model.apply(variables, images, train=False, mutable=[_MOMENTS[0]])
  found = traverse_util.flatten_dict(sown[_MOMENTS[0]])
  pairs = {path[:-1]: pair for path, (pair, *_) in found.items() if path[-1] == _MOMENTS[1]}
  return {(*path, name): pair[at] for path, pair in pairs.items() for at, name in enumerate(("mean", "var"))}
