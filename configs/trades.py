"""TRADES (arXiv:1901.08573): cross-entropy on natural images, and beta times the divergence of variants' predictions.

python -m lrat_jax.main --config=configs/trades.py            (or trades.py:cifar10, trades.py:cifar10,kl,cw)
python -m lrat_jax.main --config=configs/trades.py:digits,kl,cw --config.local_weights.kind=lrat    LRAT on TRADES
"""

from lrat_jax.config.methods import trades as get_config

__all__ = ["get_config"]
