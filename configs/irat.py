"""IRAT: adversarial training with global weights, GAIRAT's by default (`--config.global_weights.kind=mail` for MAIL's).

python -m lrat_jax.main --config=configs/irat.py            (or irat.py:cifar10, irat.py:cifar10,pgd,cw)
"""

from lrat_jax.config.methods import irat as get_config

__all__ = ["get_config"]
