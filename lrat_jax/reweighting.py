"""The weights: vulnerability, local weights inside a pair, global weights across instances.

A pair is an instance's natural image together with the adversarial variants j = 1..m that the training attacks made of
it. Local weights distribute a pair's weight inside it: over all its members (LRAT, arXiv:2106.15776), or over the
variants alone (AVG and MAX of arXiv:1904.13000, and a softmax that lies between the two). Global weights give some
pairs more weight than others (IRAT: GAIRAT, arXiv:2010.01736, and MAIL, arXiv:2106.07928). No weight carries a
gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Integer

from lrat_jax.core.typing import AxisName

PerPair = Float[Array, "batch"]
PerVariant = Float[Array, "batch variants"]
_AnyLogits = Float[Array, "*any classes"]
_AnyScores = Float[Array, "*any"]
_AnyLabels = Integer[Array, "*any"]

LOCAL_KINDS = ("none", "lrat", "max", "softmax")
GLOBAL_KINDS = ("none", "gairat", "mail")


def vulnerability(logits: _AnyLogits, labels: _AnyLabels) -> _AnyScores:
  """How clearly a variant fools the model: max_{k != y} p_k - p_y, where p is the softmax.

  It needs only the model's output on the variant, not the attack's path, so any two attacks can be compared. It is also
  MAIL's probabilistic margin.

  Args:
    logits: float [..., classes] on the variant.
    labels: int [...], the true classes.

  Returns:
    float [...] in [-1, 1], positive if and only if the variant is misclassified; no gradient.
  """
  probabilities = jax.nn.softmax(jax.lax.stop_gradient(logits))
  true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  best_other = jnp.max(jnp.where(true, -jnp.inf, probabilities), axis=-1)
  return best_other - jnp.take_along_axis(probabilities, labels[..., None], axis=-1)[..., 0]


def increasing_weight(score: Array, *, slope: float, bias: float) -> Array:
  """h(v) = (1 + tanh(slope * (v - bias))) / 2, in (0, 1): the curve of the LRAT, GAIRAT and MAIL weights.

  The closed form is this project's own: the LRAT paper requires an increasing function of vulnerability. GAIRAT's Tanh
  weight is h(1 - 2 kappa / K) with slope 5 and bias -lambda / 5 (0.2 for its lambda = -1); MAIL's sigmoid(s (PM + b))
  is h(PM) with slope s / 2 and bias -b (5 and 0.5 for its s = 10, b = -0.5).
  """
  return jax.nn.sigmoid(2.0 * slope * (score - bias))  # equal to the tanh form; exact even if that form cancels to 0


def local_weights(
  vulnerabilities: PerVariant, *, total: float, minimum_natural: float, slope: float, bias: float
) -> tuple[PerPair, PerVariant]:
  """Distributes each pair's weight inside the pair (LRAT): the more a variant fools the model, the more weight it has.

  omega_ij = (C / m) h(v_ij) for the variants, omega_i0 = max(C - sum_j omega_ij, omega_min) for the natural image. A
  pair's weights depend on that pair alone; they sum to C, or to more where omega_min applies.

  Args:
    vulnerabilities: float [batch, m] in [-1, 1].
    total: C, the weight of a pair.
    minimum_natural: omega_min, the least weight of the natural image.
    slope, bias: of `increasing_weight`.

  Returns:
    (natural [batch], adversarial [batch, m]), no gradient.
  """
  num_variants = vulnerabilities.shape[-1]
  scores = jax.lax.stop_gradient(vulnerabilities)
  adversarial = total / num_variants * increasing_weight(scores, slope=slope, bias=bias)
  natural = jnp.maximum(total - jnp.sum(adversarial, axis=-1), minimum_natural)
  return natural, adversarial


def uniform_local_weights(vulnerabilities: PerVariant, *, total: float) -> tuple[PerPair, PerVariant]:
  """The weights of plain adversarial training: (zeros [batch], C / m everywhere [batch, m])."""
  adversarial = jnp.full_like(vulnerabilities, total / vulnerabilities.shape[-1])
  return jnp.zeros_like(vulnerabilities[:, 0]), adversarial


def max_local_weights(vulnerabilities: PerVariant, *, total: float) -> tuple[PerPair, PerVariant]:
  """All of a pair's weight on its most vulnerable variant (MAX of Tramer & Boneh, arXiv:1904.13000, section 4).

  The paper takes the variant of the highest loss; this takes the highest `vulnerability`, as all local weights do.
  Variants that are equally vulnerable share the weight evenly, so that the order of the attacks changes nothing.

  Args:
    vulnerabilities: float [batch, m] in [-1, 1].
    total: C, the weight of a pair.

  Returns:
    (zeros [batch], adversarial [batch, m] that sum to C), no gradient.
  """
  scores = jax.lax.stop_gradient(vulnerabilities)
  most = (scores == jnp.max(scores, axis=-1, keepdims=True)).astype(scores.dtype)
  return jnp.zeros_like(scores[:, 0]), total * most / jnp.sum(most, axis=-1, keepdims=True)


def softmax_local_weights(vulnerabilities: PerVariant, *, total: float, slope: float) -> tuple[PerPair, PerVariant]:
  """omega_ij = C exp(slope v_ij) / sum_k exp(slope v_ik): slope 0 is `uniform_local_weights`, a large one MAX.

  This project's own, as `increasing_weight` is. The natural image has no weight.

  Args:
    vulnerabilities: float [batch, m] in [-1, 1].
    total: C, the weight of a pair.
    slope: 0 or more; the larger it is, the more weight goes to the most vulnerable variants.

  Returns:
    (zeros [batch], adversarial [batch, m] that sum to C), no gradient.
  """
  scores = jax.lax.stop_gradient(vulnerabilities)
  return jnp.zeros_like(scores[:, 0]), total * jax.nn.softmax(slope * scores, axis=-1)


def weighs_natural(kind: str) -> bool:
  """Whether local weights of that kind may give the natural image weight: LRAT's and user-defined ones."""
  return kind not in ("none", "max", "softmax")


def user_local_weights(function: Callable[..., tuple[Array, Array]], vulnerabilities: Array, **options: float):
  """User-defined local weights, made safe to train with; the function takes and returns what `local_weights` does.

  No gradient flows through the weights, whatever the function does. A weight below 0 becomes NaN, which stops the run.
  """
  weights = function(jax.lax.stop_gradient(vulnerabilities), **options)
  return tuple(_raw(part) for part in weights)


def _raw(weights: Array) -> Array:
  """Weights in float32 without a gradient; those below 0 become NaN."""
  weights = jax.lax.stop_gradient(jnp.asarray(weights, jnp.float32))
  return jnp.where(weights >= 0, weights, jnp.nan)


def global_weights(
  kind: str | Callable[..., Array],
  *,
  vulnerabilities: PerVariant,
  surviving_fractions: PerVariant,
  slope: float = 1.0,
  bias: float = 0.0,
  axis_name: AxisName | None = None,
) -> PerPair:
  """Weights across instances (IRAT): one per pair, with mean 1 over the global batch.

  A weight is h of a score: for "gairat" 1 - 2 kappa / K, where kappa of the attack's K iterates are classified
  correctly; for "mail" the probabilistic margin, which is the vulnerability. If a pair has several variants, their mean
  score is used. MAIL's constant factor 3 is left out, because the weights are scaled to mean 1. The weights apply to
  whole pairs under every objective, whereas in MAIL's own TRADES and MART they apply to one term of the loss.

  Args:
    kind: "none" (ones), "gairat", "mail", or a function (*, vulnerabilities, surviving_fractions) -> [batch], raw
      weights of 0 or more, which are scaled to mean 1. One below 0 becomes NaN; if all are 0, all weights are 1.
    vulnerabilities: float [batch, m] in [-1, 1].
    surviving_fractions: float [batch, m] in [0, 1], kappa / K.
    slope, bias: of `increasing_weight`, which gives the two papers' constants; not passed to a function.
    axis_name: mesh axes over which the batch is sharded, so that the device count changes nothing; None for one device.

  Returns:
    float [batch], no gradient. Raises ValueError, with the choices, for an unknown kind.
  """
  if kind == "none":
    return jnp.ones_like(vulnerabilities[:, 0])
  across = lambda reduce, value: value if axis_name is None else reduce(value, axis_name)
  if callable(kind):
    given = {"vulnerabilities": vulnerabilities, "surviving_fractions": surviving_fractions}
    raw = _raw(kind(**jax.lax.stop_gradient(given)))
    weights = jnp.where(across(jax.lax.pmax, jnp.max(raw)) == 0, 1.0, raw)
  elif kind in GLOBAL_KINDS:
    scores = vulnerabilities if kind == "mail" else 1.0 - 2.0 * surviving_fractions
    scores = jnp.mean(jax.lax.stop_gradient(scores), axis=-1)
    # Only ratios matter. Divide by the largest, or scores that are all far below the bias would underflow to 0 / 0.
    logs = jax.nn.log_sigmoid(2.0 * slope * (scores - bias))
    weights = jnp.exp(logs - across(jax.lax.pmax, jnp.max(logs)))
  else:
    raise ValueError(f"global_weights.kind={kind!r} is unknown; choose from {list(GLOBAL_KINDS)}.")
  return weights / across(jax.lax.pmean, jnp.mean(weights))
