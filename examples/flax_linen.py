"""A Flax Linen model, trained a few steps. `--model=examples.flax_linen:make_model`, which returns the logits_fn."""

import jax
from flax import linen as nn
from jax.tree_util import Partial

from examples.training import fit


class Network(nn.Module):
  @nn.compact
  def __call__(self, images):
    x = nn.relu(nn.Dense(64)(images.reshape(images.shape[0], -1)))
    return nn.Dense(10)(x)


def make_model():
  """Partial(apply, variables) is called with images; its variables are arguments of the compiled function."""
  model = Network()
  variables = model.init(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 1)))
  return Partial(model.apply, fit(model.apply, variables))
