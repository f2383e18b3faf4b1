"""The loss on a pair: how a natural image, its variants and their local weights make one number per instance."""

from collections.abc import Callable

from jax import Array

from lrat_jax.attacks.losses import cross_entropy

# (natural_logits [batch, classes], adversarial_logits [batch, m, classes], labels [batch],
#  natural_weights [batch], adversarial_weights [batch, m]) -> losses [batch], in nats
Objective = Callable[[Array, Array, Array, Array, Array], Array]


def weighted_cross_entropy(
  natural_logits: Array | None,
  adversarial_logits: Array,
  labels: Array,
  natural_weights: Array,
  adversarial_weights: Array,
) -> Array:
  """omega_i0 l(x_i, y_i) + sum_j omega_ij l(x~_ij, y_i), l the cross-entropy (LRAT, arXiv:2106.15776).

  Args:
    natural_logits: float [batch, classes], or None where every natural weight is 0 (adversarial training).
    adversarial_logits: float [batch, m, classes].
    labels: int [batch].
    natural_weights: float [batch].
    adversarial_weights: float [batch, m].

  Returns:
    float [batch], the pairs' losses in nats, before any global weight and mean.
  """
  num_variants = adversarial_logits.shape[1]
  losses = 0.0
  for j in range(num_variants):
    losses += adversarial_weights[:, j] * cross_entropy(adversarial_logits[:, j], labels)
  if natural_logits is not None:
    losses += natural_weights * cross_entropy(natural_logits, labels)
  return losses


OBJECTIVES: dict[str, Objective] = {"ce": weighted_cross_entropy}
