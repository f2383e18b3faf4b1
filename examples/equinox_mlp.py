"""An Equinox model, trained a few steps. `--model=examples.equinox_mlp:make_model`, which returns the logits_fn."""

import equinox as eqx
import jax
from jax.tree_util import Partial

from examples.training import fit


def make_model():
  """The model is split into its arrays and the rest. An Equinox model takes one image, so vmap maps it over a batch."""
  arrays, rest = eqx.partition(eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0)), eqx.is_array)
  apply = lambda arrays, images: jax.vmap(eqx.combine(arrays, rest))(images.reshape(images.shape[0], -1))
  return Partial(apply, fit(apply, arrays))
