"""LRAT and IRAT together: local weights inside the pairs, global weights across them.

python -m lrat_jax.main --config=configs/lrat_irat.py            (or lrat_irat.py:cifar10, lrat_irat.py:cifar10,pgd,cw)
"""

from lrat_jax.config.methods import lrat_irat as get_config

__all__ = ["get_config"]
