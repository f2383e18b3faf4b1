"""A Flax NNX model, trained a few steps. `--model=examples.flax_nnx:make_model`, which returns the logits_fn."""

import jax
from flax import nnx
from jax.tree_util import Partial

from examples.training import fit


class Network(nnx.Module):
  def __init__(self, rngs: nnx.Rngs):
    self.first, self.last = nnx.Linear(64, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)

  def __call__(self, images):
    return self.last(jax.nn.relu(self.first(images.reshape(images.shape[0], -1))))


def make_model():
  """The module is split into its definition and its state. The state goes with the function as a Partial."""
  graph, state = nnx.split(Network(nnx.Rngs(0)))
  apply = lambda state, images: nnx.merge(graph, state)(images)
  return Partial(apply, fit(apply, state))
