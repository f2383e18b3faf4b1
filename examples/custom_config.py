"""A custom configuration: trains against PGD and a custom attack, with a custom weighting.

python -m lrat_jax.main --config=examples/custom_config.py            (or custom_config.py:cifar10,pgd,cw)
"""

from lrat_jax.config import default as base


def get_config(arg=None):
  """The default configuration for a data set and its training attacks, with some fields changed."""
  config = base.default("mine", arg)
  budget = config.validation_attack  # the norm, radius and step size of the data set
  mine = dict(
    name="examples.custom_attack:mi_fgsm",  # package.module:function; the other fields are its arguments
    norm=budget.norm,
    epsilon=budget.epsilon,
    step_size=budget.step_size,
    num_steps=10,
    decay=0.9,
  )
  config.train_attacks.mi_fgsm = mine  # one more variant in every pair
  config.eval.suite.mi_fgsm = mine | dict(num_steps=20)
  config.local_weights.kind = "examples.custom_weighting:linear"
  config.local_weights.update(slope=1.0, bias=0.0)
  return config
