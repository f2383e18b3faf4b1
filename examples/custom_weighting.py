"""Custom weightings, inside the pairs and across them: linear functions in place of LRAT's and GAIRAT's curves.

python -m lrat_jax.main --config=configs/lrat.py --config.local_weights.kind=examples.custom_weighting:linear
python -m lrat_jax.main --config=configs/irat.py --config.global_weights.kind=examples.custom_weighting:soon_fooled
"""

import jax.numpy as jnp


def linear(vulnerabilities, *, total, minimum_natural, slope, bias):
  """Local weights: the tangent of LRAT's curve at `bias`, clipped to [0, 1].

  Args:
    vulnerabilities: float [batch, m] in [-1, 1], positive if the variant fools the model.
    total, minimum_natural, slope, bias: of config.local_weights.

  Returns:
    (natural [batch], adversarial [batch, m]), each 0 or more. No gradient flows through them, in any case.
  """
  share = jnp.clip(0.5 + 0.5 * slope * (vulnerabilities - bias), 0.0, 1.0)
  adversarial = total / vulnerabilities.shape[1] * share
  natural = jnp.maximum(total - jnp.sum(adversarial, axis=1), minimum_natural)
  return natural, adversarial


def soon_fooled(*, vulnerabilities, surviving_fractions):
  """Global weights: from 1 for a pair that survives every step of its attacks to 2 for one that they break at once.

  Args:
    vulnerabilities: as above.
    surviving_fractions: float [batch, m] in [0, 1], the share of an attack's steps at which the model was correct.

  Returns:
    Raw weights [batch], each 0 or more; they are scaled to mean 1 over the batch of all devices.
  """
  return 2.0 - jnp.mean(surviving_fractions, axis=1)
