"""A training step for the tests: a small configuration, the phases of training, batches, and a few steps."""

import numpy as np

from lrat_jax.core import sharding
from lrat_jax.training import phases
from lrat_jax.training import step as step_lib
from tests.helpers import STEP, make_config, make_experiment, to_numpy

LOCAL = phases.Phase(use_local_weights=True, use_global_weights=False)
BOTH = phases.Phase(use_local_weights=True, use_global_weights=True)
PERTURBED = phases.Phase(use_local_weights=True, use_global_weights=True, use_awp=True)
PLAIN = phases.Phase(use_local_weights=False, use_global_weights=False)

FIELDS = STEP | {
  # For an untrained network, weights differ only on the slope of the curve.
  "local_weights__slope": 2.0,
  "local_weights__bias": -0.2,
  "global_weights__kind": "gairat",
}


def make_step(experiment, phase):
  arguments = (
    experiment.config,
    experiment.model,
    experiment.optimizer,
    experiment.total_steps,
    experiment.mesh,
    phase,
  )
  return step_lib.make_train_step(*arguments)


def lowered(experiment, phase, size=16):
  step = make_step(experiment, phase)
  return step.func.lower(*step.args, experiment.initial_state(), make_batch(experiment, 0, size))


def make_batch(experiment, number, size=16):
  rows = (np.arange(size) + number * size) % len(experiment.dataset.train.labels)
  return sharding.shard_batch(experiment.mesh, experiment.dataset.train.take(rows)._asdict())


def train(num_devices, phase, steps, shape=(8, 8, 1), arg="digits,suite=pgd", **fields):
  experiment = make_experiment(make_config(arg, **FIELDS | fields), num_devices, shape)
  step, state, outputs = make_step(experiment, phase), experiment.initial_state(), []
  for number in range(steps):
    state, output = step(state, make_batch(experiment, number))
    outputs.append(to_numpy(output))
  return to_numpy(state), outputs
