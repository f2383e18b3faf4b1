"""Classifiers by name, and models that the user brings."""

from lrat_jax.models.networks import (
  DTYPES,
  NAMES,
  Applied,
  Classifier,
  applied,
  create,
  features,
  features_of,
  microbatch_size,
)

__all__ = [
  "DTYPES",
  "NAMES",
  "Applied",
  "Classifier",
  "applied",
  "create",
  "features",
  "features_of",
  "microbatch_size",
]
