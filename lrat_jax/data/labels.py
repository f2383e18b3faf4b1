"""Labels that are distributions over the classes: conversion to and from hard labels, and smoothing."""

import jax
import jax.numpy as jnp
import numpy as np

from lrat_jax.core.typing import AnyLabels, Distributions
from lrat_jax.data.splits import Split


def as_distributions(labels: AnyLabels, num_classes: int) -> Distributions:
  """Labels as distributions, float32 [batch, classes]; integers become one-hot."""
  if labels.ndim == 2:
    return labels.astype(jnp.float32)
  return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)


def smooth(labels: AnyLabels, smoothing: float, num_classes: int) -> AnyLabels:
  """Label smoothing (Szegedy et al., arXiv:1512.00567, section 7): (1 - s) q + s / classes; unchanged if s = 0.

  Some code for adversarial training (Pang et al., arXiv:2202.10103) distributes s over the wrong classes only: its s
  corresponds to s * classes / (classes - 1) here.
  """
  if not smoothing:
    return labels
  return (1.0 - smoothing) * as_distributions(labels, num_classes) + smoothing / num_classes


def for_training(split: Split) -> Split:
  """The split, with hard labels if all its distributions are one-hot: the run and the program are then the same."""
  if split.labels.ndim == 1 or (np.count_nonzero(split.labels, axis=1) > 1).any():
    return split
  return for_evaluation(split)


def for_evaluation(split: Split) -> Split:
  """The split with hard labels: the most probable class of a distribution, the first one in a tie."""
  if split.labels.ndim == 1:
    return split
  return split._replace(labels=split.labels.argmax(axis=1).astype(np.int32))
