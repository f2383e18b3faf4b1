"""A linear model, and AutoAttack with small sizes."""

import jax

from lrat_jax import attacks


def linear(weights, images):
  return images.reshape(images.shape[0], -1) @ weights


def run(model, images, labels, **arguments):
  arguments = {"epsilon": 0.02, "version": "apgd", "chunk_size": 8, "batch_size": 16} | arguments
  return attacks.autoattack(jax.random.key(0), model, images, labels, **arguments)
