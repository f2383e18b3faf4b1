"""Classifiers by name, and models that the user brings."""

from lrat_jax.models.networks import DTYPES, NAMES, Classifier, create, microbatch_size

__all__ = ["DTYPES", "NAMES", "Classifier", "create", "microbatch_size"]
