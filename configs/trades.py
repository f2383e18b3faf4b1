"""TRADES (arXiv:1901.08573): cross-entropy on natural images, and beta times the divergence of the variants' answers.

python -m lrat_jax.main --config=configs/trades.py            (or trades.py:cifar10, trades.py:cifar10,kl,cw)
python -m lrat_jax.main --config=configs/trades.py:digits,kl,cw --config.local_weights.kind=lrat    LRAT on TRADES
"""

from ml_collections import ConfigDict

from lrat_jax.config import default as base


def get_config(arg: str | None = None) -> ConfigDict:
  """The configuration for a data set and its training attacks; see `lrat_jax.config.default`."""
  config = base.default("trades", arg, attack="kl")
  config.objective = "trades"
  config.beta = 6.0
  return config
