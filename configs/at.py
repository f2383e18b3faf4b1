"""Adversarial training (Madry et al., arXiv:1706.06083): every variant weighs the same, the natural image nothing.

python -m lrat_jax.main --config=configs/at.py            (or at.py:cifar10, at.py:cifar10,pgd,cw)
"""

from ml_collections import ConfigDict

from lrat_jax.config import default as base


def get_config(arg: str | None = None) -> ConfigDict:
  """The configuration for a data set and its training attacks; see `lrat_jax.config.default`."""
  return base.default("at", arg)
