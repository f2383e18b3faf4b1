"""MART (Wang et al., ICLR 2020): boosted cross-entropy, and a divergence that counts where natural images are unsure.

python -m lrat_jax.main --config=configs/mart.py            (or mart.py:cifar10, mart.py:cifar10,pgd,cw)
"""

from ml_collections import ConfigDict

from lrat_jax.config import default as base


def get_config(arg: str | None = None) -> ConfigDict:
  """The configuration for a data set and its training attacks; see `lrat_jax.config.default`."""
  config = base.default("mart", arg)
  config.objective = "mart"
  config.beta = 5.0
  return config
