"""MAX (arXiv:1904.13000): trains only on the most vulnerable of the variants in several norms.

python -m lrat_jax.main --config=configs/max.py            (or max.py:cifar10, max.py:cifar10,pgd,pgd_l1)
"""

from lrat_jax.config.methods import max_ as get_config

__all__ = ["get_config"]
