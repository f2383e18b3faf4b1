"""Candidates for the local weights of several variants, and the search among them on validation images.

    python -m benchmarks.weightings --workdir=runs/weightings

Trains every candidate on digits in three norms, two seeds, and evaluates it by APGD-CE + APGD-T in each norm on 497
validation images; resumable. A candidate is a function for `local_weights.kind`. The list was written before any of
them was run. Some candidates differ only in configuration fields: slopes of the softmax, and its start after a quarter
and after half of the epochs, as the coarsest form of annealing.

All functions take what `reweighting.user_local_weights` passes: vulnerabilities [batch, m] in [-1, 1], and `total`,
`minimum_natural`, `slope` and `bias` of `local_weights`. They return (natural [batch], adversarial [batch, m]).
"""

import sys

import jax
import jax.numpy as jnp
from absl import app, flags
from jax import Array

from lrat_jax import reweighting
from lrat_jax.compare import __main__ as compare

FLAGS = flags.FLAGS

Weights = tuple[Array, Array]
_SMALLEST_SPREAD = 1e-3


def standardised(vulnerabilities: Array, *, total: float, slope: float, **_) -> Weights:
  """A softmax of vulnerabilities that are standardised by their pair's mean and standard deviation.

  If all variants of a pair are nearly equally vulnerable, a plain softmax is nearly uniform. This one depends only on
  their order and relative distances. If they are equal, it is uniform.
  """
  deviation = vulnerabilities - jnp.mean(vulnerabilities, axis=1, keepdims=True)
  spread = jnp.maximum(jnp.std(vulnerabilities, axis=1, keepdims=True), _SMALLEST_SPREAD)
  return jnp.zeros_like(vulnerabilities[:, 0]), total * jax.nn.softmax(slope * deviation / spread, axis=1)


def floored_max(vulnerabilities: Array, *, total: float, minimum_natural: float, **_) -> Weights:
  """MAX, except that the weight `minimum_natural` is distributed evenly over the variants."""
  natural, most = reweighting.max_local_weights(vulnerabilities, total=total - minimum_natural)
  return natural, most + minimum_natural / vulnerabilities.shape[1]


def natural_of_least(
  vulnerabilities: Array, *, total: float, minimum_natural: float, slope: float, bias: float
) -> Weights:
  """The natural weight is LRAT's curve of the least vulnerable variant; a softmax distributes the rest.

  If every variant of a pair fools the model, the natural image has the least weight. LRAT uses all variants together.
  """
  least = jnp.min(vulnerabilities, axis=1)
  natural = jnp.maximum(total * (1 - reweighting.increasing_weight(least, slope=slope, bias=bias)), minimum_natural)
  return natural, (total - natural)[:, None] * jax.nn.softmax(slope * vulnerabilities, axis=1)


def by_norm(vulnerabilities: Array, *, total: float, slope: float, **_) -> Weights:
  """A softmax of the mean vulnerability of each attack over the batch: all pairs have the same weights.

  It tests whether weights of single pairs matter, or only how much each norm is trained on. For one device only: the
  mean is over the images of a device.
  """
  shares = jax.nn.softmax(slope * jnp.mean(vulnerabilities, axis=0))
  return jnp.zeros_like(vulnerabilities[:, 0]), jnp.broadcast_to(total * shares, vulnerabilities.shape)


def _candidate(name: str, **fields: float) -> str:
  """A method as `compare` names it: these weights from the first epoch on, unless `fields` say otherwise."""
  own = {"local_weights.kind": f"benchmarks.weightings:{name}", "local_weights.begin_fraction": 0.0}
  own |= {f"local_weights.{field}": value for field, value in fields.items()}
  return "@".join(["at:union", *(f"{field}={value}" for field, value in own.items())])


METHODS = (
  "at:union",
  "max",
  "at:msd",
  "lrat:union",
  *(f"softmax@local_weights.slope={slope}" for slope in (1.0, 2.0, 4.0, 8.0)),
  *(f"softmax@local_weights.slope=4.0@local_weights.begin_fraction={begin}" for begin in (0.25, 0.5)),
  *(_candidate("standardised", slope=slope) for slope in (0.5, 1.0, 2.0)),
  *(_candidate("floored_max", minimum_natural=floor) for floor in (0.25, 0.5)),
  *(_candidate("natural_of_least", minimum_natural=0.0, slope=slope, bias=-1.0) for slope in (2.0, 5.0)),
  *(_candidate("by_norm", slope=slope) for slope in (2.0, 8.0)),
)


def arguments(workdir: str, seeds: str, jobs: int) -> list[str]:
  """Arguments of `lrat_jax.compare` for the whole search."""
  return [
    f"--methods={','.join(METHODS)}",
    f"--seeds={seeds}",
    f"--jobs={jobs}",
    "--data=digits",
    "--suite=union",
    f"--workdir={workdir}",
    "--config.data.validation_size=497",
    "--config.eval.split=validation",
    "--config.eval.num_sanity_examples=0",
  ]


def main(_) -> None:
  sys.exit(compare.main(arguments(FLAGS.workdir, FLAGS.seeds, FLAGS.jobs)))


if __name__ == "__main__":
  flags.DEFINE_string("workdir", "runs/weightings", "where the runs and the result live")
  flags.DEFINE_string("seeds", "0,1", "the seeds")
  flags.DEFINE_integer("jobs", 1, "runs at a time, which share the CPU's cores")
  app.run(main)
