"""E-AT (arXiv:2105.12508): each batch is attacked in one norm, drawn in proportion to its robust error.

python -m lrat_jax.main --config=configs/eat.py            (or eat.py:cifar10, eat.py:cifar10,pgd,pgd_l1)
"""

from lrat_jax.config.methods import eat as get_config

__all__ = ["get_config"]
