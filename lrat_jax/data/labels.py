"""Labels that are distributions over the classes: what hard labels they stand for, and smoothing."""

import jax
import jax.numpy as jnp
import numpy as np

from lrat_jax.core.typing import AnyLabels, Distributions
from lrat_jax.data.splits import Split


def as_distributions(labels: AnyLabels, num_classes: int) -> Distributions:
  """Labels as distributions, float32 [batch, classes]: those of integers are one-hot."""
  if labels.ndim == 2:
    return labels.astype(jnp.float32)
  return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)


def smooth(labels: AnyLabels, smoothing: float, num_classes: int) -> AnyLabels:
  """(1 - s) q + s / classes, label smoothing (Szegedy et al., arXiv:1512.00567, section 7); with s = 0 as they are.

  Some code for adversarial training (Pang et al., arXiv:2202.10103) shares s out among the wrong classes alone: its s
  is s * classes / (classes - 1) here.
  """
  if not smoothing:
    return labels
  return (1.0 - smoothing) * as_distributions(labels, num_classes) + smoothing / num_classes


def for_training(split: Split) -> Split:
  """The split with distributions that are all one-hot as the classes that they name: the same run, the same program."""
  if split.labels.ndim == 1 or (np.count_nonzero(split.labels, axis=1) > 1).any():
    return split
  return for_evaluation(split)


def for_evaluation(split: Split) -> Split:
  """The split with hard labels: of a distribution its likeliest class, the first of equals."""
  if split.labels.ndim == 1:
    return split
  return split._replace(labels=split.labels.argmax(axis=1).astype(np.int32))
