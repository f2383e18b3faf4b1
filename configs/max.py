"""MAX (arXiv:1904.13000): of the variants in several norms the most vulnerable alone is trained on.

python -m lrat_jax.main --config=configs/max.py            (or max.py:cifar10, max.py:cifar10,pgd,pgd_l1)
"""

from lrat_jax.config.methods import max_ as get_config

__all__ = ["get_config"]
