"""Classifiers by name, and user-defined models."""

from lrat_jax.models.layers import ACTIVATIONS
from lrat_jax.models.mean_sparse import fit_mean_sparse
from lrat_jax.models.networks import (
  DTYPES,
  NAMES,
  OPTIONS,
  PREPROCESSING,
  Applied,
  Classifier,
  applied,
  create,
  features,
  features_of,
  microbatch_size,
)

__all__ = [
  "ACTIVATIONS",
  "DTYPES",
  "NAMES",
  "OPTIONS",
  "PREPROCESSING",
  "Applied",
  "Classifier",
  "applied",
  "create",
  "features",
  "features_of",
  "fit_mean_sparse",
  "microbatch_size",
]
