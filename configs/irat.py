"""IRAT: adversarial training with global weights, GAIRAT's by default (`--config.global_weights.kind=mail` for MAIL's).

python -m lrat_jax.main --config=configs/irat.py            (or irat.py:cifar10, irat.py:cifar10,pgd,cw)
"""

from ml_collections import ConfigDict

from lrat_jax.config import default as base


def get_config(arg: str | None = None) -> ConfigDict:
  """The configuration for a data set and its training attacks; see `lrat_jax.config.default`."""
  config = base.default("irat", arg)
  config.global_weights.kind = "gairat"
  return config
