"""LRAT and IRAT together: local weights inside the pairs, global weights across them.

python -m lrat_jax.main --config=configs/lrat_irat.py            (or lrat_irat.py:cifar10, lrat_irat.py:cifar10,pgd,cw)
"""

from ml_collections import ConfigDict

from lrat_jax.config import default as base


def get_config(arg: str | None = None) -> ConfigDict:
  """The configuration for a data set and its training attacks; see `lrat_jax.config.default`."""
  config = base.default("lrat_irat", arg)
  config.local_weights.kind = "lrat"
  config.global_weights.kind = "gairat"
  return config
