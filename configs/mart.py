"""MART (Wang et al., ICLR 2020): boosted cross-entropy, and a divergence weighted by uncertainty on natural images.

python -m lrat_jax.main --config=configs/mart.py            (or mart.py:cifar10, mart.py:cifar10,pgd,cw)
"""

from lrat_jax.config.methods import mart as get_config

__all__ = ["get_config"]
