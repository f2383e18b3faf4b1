"""A Haiku model, trained a few steps. `--model=examples.haiku_mlp:make_model`, which returns the logits_fn."""

import haiku as hk
import jax
from jax.tree_util import Partial

from examples.training import fit


def make_model():
  """A transformed function also takes a key, for random layers. Without it the arguments are (parameters, images)."""
  network = hk.without_apply_rng(hk.transform(lambda images: hk.nets.MLP([64, 10])(hk.Flatten()(images))))
  parameters = network.init(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 1)))
  return Partial(network.apply, fit(network.apply, parameters))
