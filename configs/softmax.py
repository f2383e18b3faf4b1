"""Between AVG and MAX: variants in several norms, weighted by a softmax.

python -m lrat_jax.main --config=configs/softmax.py            (or softmax.py:cifar10, softmax.py:cifar10,pgd,pgd_l1)
"""

from lrat_jax.config.methods import softmax as get_config

__all__ = ["get_config"]
