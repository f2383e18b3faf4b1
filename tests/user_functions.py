"""User-defined functions that a configuration may name: some that are valid, and one for each possible error."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lrat_jax.attacks import AttackResult

NUMBER = 3


def noise(keys, logits_fn, images, labels, *, epsilon="8/255", step_size=None, num_steps=2, share=1.0):
  """A valid attack: every image moves towards a random corner of the ball, by `share` of the way."""
  signs = jax.vmap(lambda key: jax.random.rademacher(key, images.shape[1:], images.dtype))(keys)
  return AttackResult(jnp.clip(images + share * epsilon * signs, 0, 1), num_steps + 0 * labels)


def three_arguments(keys, images, labels):
  return AttackResult(images, labels)


def fails(*_, **__):
  raise RuntimeError("out of order\nand more")


def attack_that_fails(keys, logits_fn, images, labels):
  raise RuntimeError("out of order\nand more")


def images_alone(keys, logits_fn, images, labels):
  return images


def flat_images(keys, logits_fn, images, labels):
  return images.reshape(len(images), -1), 0 * labels


def no_steps(keys, logits_fn, images, labels):
  return images, 0.0 * labels


def too_many_steps(keys, logits_fn, images, labels, *, num_steps):
  return images, num_steps + 1 + 0 * labels


def too_far(keys, logits_fn, images, labels, *, epsilon, norm="linf"):
  return jnp.clip(images + 2 * epsilon, 0, 1), 0 * labels


def out_of_range(keys, logits_fn, images, labels):
  return images + 1, 0 * labels


def not_a_number(keys, logits_fn, images, labels):
  return images * jnp.nan, 0 * labels


def branches(keys, logits_fn, images, labels, *, epsilon):
  return images + (epsilon if epsilon < 0 else 0), 0 * labels


def from_a_constant(keys, logits_fn, images, labels):
  survived = jax.lax.fori_loop(0, 1, lambda _, c: c + (labels == 0), jnp.zeros(labels.shape, jnp.int32))
  return images, survived


def even(vulnerabilities, *, total, minimum_natural, slope, bias):
  """A valid local weighting, although it passes on a gradient and returns constants that do not vary over devices."""
  return jnp.full(vulnerabilities.shape[:1], total / 2), total / 2 * vulnerabilities**2


def too_few(vulnerabilities, **_):
  return vulnerabilities[:, 0], vulnerabilities[:, 0]


def negative(vulnerabilities, **_):
  return vulnerabilities[:, 0], vulnerabilities


def squares(*, vulnerabilities, surviving_fractions):
  """A valid global weighting."""
  return vulnerabilities[:, 0] ** 2


def nothing(*, vulnerabilities, surviving_fractions):
  return jnp.zeros(len(vulnerabilities))


def one_below(*, vulnerabilities, surviving_fractions):
  return vulnerabilities[:, 0]


def whole(*, vulnerabilities, surviving_fractions):
  return vulnerabilities


class _Network(nn.Module):
  num_classes: int
  kind: str = "serves"

  @nn.compact
  def __call__(self, images, train=False):
    x = nn.Dense(self.num_classes + (self.kind == "wide"))(images.reshape(len(images), -1))
    if self.kind == "counts":
      self.variable("counter", "calls", jnp.zeros, ())
    if self.kind == "drops":
      x = nn.Dropout(0.5, deterministic=not train)(x)
    return x


def linear(num_classes, *, dtype, axis_name):
  """A valid network."""
  return _Network(num_classes)


def wide(num_classes, *, dtype, axis_name):
  return _Network(num_classes, "wide")


def counts(num_classes, *, dtype, axis_name):
  return _Network(num_classes, "counts")


def drops(num_classes, *, dtype, axis_name):
  return _Network(num_classes, "drops")


def no_module(num_classes, *, dtype, axis_name):
  return len


def no_classes():
  return _Network(2)


def arrays():
  """A valid data set, with the names that Keras uses."""
  generator = np.random.default_rng(0)
  images, labels = generator.integers(0, 256, (40, 6, 5), np.uint8), np.arange(40) % 4
  return {"x_train": images[:32], "y_train": jnp.asarray(labels[:32]), "x_test": images[32:], "y_test": labels[32:]}


def train_alone():
  return {"x_train": np.zeros((3, 2, 2))}


def ragged():
  return arrays() | {"x_train": [[1], [1, 2]]}


def objects():
  return arrays() | {"x_train": np.array([{}] * 32)}


def bright():
  return arrays() | {"x_train": np.full((32, 6, 5), 2.0)}
