"""LRAT (arXiv:2106.15776): weight moves inside each pair of a natural image and its variants, never across pairs.

python -m lrat_jax.main --config=configs/lrat.py            (or lrat.py:cifar10, lrat.py:cifar10,pgd,cw)
python -m lrat_jax.main --config=configs/lrat.py:digits,union    a variant in each of L-infinity, L2 and L1
"""

from lrat_jax.config.methods import lrat as get_config

__all__ = ["get_config"]
