"""LRAT (arXiv:2106.15776): weight moves inside each pair of a natural image and its variants, never across pairs.

python -m lrat_jax.main --config=configs/lrat.py            (or lrat.py:cifar10, lrat.py:cifar10,pgd,cw)
"""

from ml_collections import ConfigDict

from lrat_jax.config import default as base


def get_config(arg: str | None = None) -> ConfigDict:
  """The configuration for a data set and its training attacks; see `lrat_jax.config.default`."""
  config = base.default("lrat", arg)
  config.local_weights.kind = "lrat"
  return config
