"""Adversarial training (Madry et al., arXiv:1706.06083): every variant has equal weight, the natural image none.

python -m lrat_jax.main --config=configs/at.py            (or at.py:cifar10, at.py:cifar10,pgd,cw)
python -m lrat_jax.main --config=configs/at.py:digits,union      AVG: a variant in each of L-infinity, L2 and L1
python -m lrat_jax.main --config=configs/at.py:digits,msd        one variant, by an attack in all three
"""

from lrat_jax.config.methods import at as get_config

__all__ = ["get_config"]
