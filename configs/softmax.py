"""Between AVG and MAX: a softmax over the variants in several norms says what each weighs.

python -m lrat_jax.main --config=configs/softmax.py            (or softmax.py:cifar10, softmax.py:cifar10,pgd,pgd_l1)
"""

from lrat_jax.config.methods import softmax as get_config

__all__ = ["get_config"]
