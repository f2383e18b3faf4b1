"""A small network's evaluation: the split, the suite, and the call that most tests make."""

from jax.tree_util import Partial

from lrat_jax import models
from lrat_jax.core import sharding
from lrat_jax.evaluation import evaluate
from tests.helpers import make_split

SUITE = {
  "fgsm": {"name": "fgsm", "epsilon": "0.05"},
  "pgd": {"name": "pgd", "epsilon": "0.05", "step_size": "0.02", "num_steps": 3},
}
SPLIT = make_split(40)


def run_suite(model, variables, suite=SUITE, batch_size=8, num_devices=1, seed=3, split=SPLIT, **options):
  """(summary, per_example)."""
  logits_fn = Partial(models.applied(model), variables)
  mesh = sharding.make_mesh(num_devices)
  return evaluate.run_suite(logits_fn, split, suite, batch_size=batch_size, mesh=mesh, seed=seed, **options)[:2]
