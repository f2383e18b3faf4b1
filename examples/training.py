"""Shared by the examples: a few steps of Adam on the digits, for any parameters that are a tree of arrays."""

import jax
import optax

from lrat_jax import data


def fit(apply, parameters, num_steps=60):
  """The parameters after some steps on all training images; `apply` is (parameters, images) -> logits."""
  train = data.load("digits", validation_size=197).train
  optimizer = optax.adam(1e-2)
  loss = lambda p: optax.losses.softmax_cross_entropy_with_integer_labels(apply(p, train.images), train.labels).mean()

  def step(_, carry):
    updates, state = optimizer.update(jax.grad(loss)(carry[0]), carry[1])
    return optax.apply_updates(carry[0], updates), state

  start = (parameters, optimizer.init(parameters))
  return jax.jit(lambda start: jax.lax.fori_loop(0, num_steps, step, start))(start)[0]
