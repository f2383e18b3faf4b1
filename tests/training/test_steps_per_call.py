"""Several steps in one call: the same results as single steps, and the same rows, records, saves and resumed runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from lrat_jax.config import validate
from lrat_jax.core import files
from lrat_jax.core.errors import ConfigError, NonFiniteError, Preempted
from lrat_jax.training import checkpoints, metrics
from lrat_jax.training import loop as loop_lib
from lrat_jax.training import step as step_lib
from lrat_jax.training.phases import Phase
from tests.helpers import SMALL, make_config, make_experiment, to_numpy
from tests.training.step_case import FIELDS, make_batch, make_step

CONFIG = {name.replace(".", "__"): value for name, value in SMALL.items()}
# Five steps per epoch: rows after steps 4, 5, 8, 10, 12, 15, and saves after 7 and 14, each with an additional row.
CONFIG |= {"data__batch_size": 12, "train__num_logged_examples": 7, "train__epochs": 3, "train__log_every_steps": 4}
CONFIG |= {"train__checkpoint_every_steps": 7, "local_weights__kind": "lrat"}


def _experiment(steps_per_call, **fields):
  return make_experiment(make_config(**CONFIG | {"train__steps_per_call": steps_per_call} | fields))


def _train(experiment, workdir, stop=lambda: False):
  loop_lib.train(experiment, workdir, Console(quiet=True), stop)
  with checkpoints.Checkpoints(workdir / "checkpoints", read_only=True) as saved:
    step = saved.latest_step()
    state, progress = saved.restore(step, experiment.initial_state())
  rows = [
    {k: v for k, v in row.items() if k != "images_per_second"} for row in metrics.read_rows(workdir / "metrics.jsonl")
  ]
  weights = [files.read_arrays(path) for path in sorted((workdir / "weights").iterdir())]
  return to_numpy(state), progress, rows, weights


def _assert_same(ours, theirs):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours[0], theirs[0])
  assert ours[1] == theirs[1]
  assert [row.keys() for row in ours[2]] == [row.keys() for row in theirs[2]]
  for row, other in zip(ours[2], theirs[2], strict=True):
    for name in row:
      np.testing.assert_allclose(row[name], other[name], rtol=1e-4, atol=1e-5) if name != "split" else None
  for arrays, others in zip(ours[3], theirs[3], strict=True):
    for name in others:
      if name == "variants":
        assert list(arrays[name]) == list(others[name])
      else:
        np.testing.assert_allclose(arrays[name], others[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("num_devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_call_of_several_steps_is_as_many_steps(num_devices):
  phase = Phase(use_local_weights=True, use_global_weights=True)
  experiment = make_experiment(make_config(**FIELDS | {"data__flip": True}), num_devices)
  batches = [make_batch(experiment, number) for number in range(3)]
  one, state, outputs = make_step(experiment, phase), experiment.initial_state(), []
  for batch in batches:
    state, output = one(state, batch)
    outputs.append(to_numpy(output))
  many = step_lib.make_train_step(*_parts(experiment), phase, 3)
  together, output = many(experiment.initial_state(), *batches)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), to_numpy(together), to_numpy(state))
  found = step_lib.outputs_by_step(to_numpy(output))
  assert len(found) == 3
  for ours, alone in zip(found, outputs, strict=True):
    for name, value in ours._asdict().items():
      np.testing.assert_allclose(value, getattr(alone, name), rtol=1e-4, atol=1e-5, err_msg=name)


def _parts(experiment):
  return experiment.config, experiment.model, experiment.optimizer, experiment.total_steps, experiment.mesh


@pytest.mark.slow
def test_a_run_is_that_of_single_steps_also_where_it_was_stopped(tmp_path):
  single = _train(_experiment(1), tmp_path / "single")
  together = _experiment(3)
  _assert_same(_train(together, tmp_path / "together"), single)
  steps = [row["step"] for row in single[2] if row["split"] == "train"]
  assert steps == [4, 5, 7, 8, 10, 12, 14, 15]
  calls = iter(range(1, 100))
  with pytest.raises(Preempted, match=r"step 8 of 15"):  # calls end at steps 3, 4, 5 and 6, 7, 8
    _train(together, tmp_path / "stopped", stop=lambda: next(calls) == 6)
  _assert_same(_train(together, tmp_path / "stopped"), single)


@pytest.mark.slow
def test_the_first_step_that_is_not_finite_is_named(tmp_path):
  """The third of four steps in a call has a learning rate of NaN, so its parameters are NaN."""
  rate = lambda count: jnp.where(count == 2, jnp.nan, 0.1)
  experiment = _experiment(4)._replace(optimizer=optax.sgd(rate))
  with pytest.raises(NonFiniteError, match=r"parameter_norm is not finite at step 3\."):
    _train(experiment, tmp_path)


def test_no_step_in_a_call_is_refused():
  with pytest.raises(ConfigError, match=r"train.steps_per_call=0 is outside \[1"):
    validate.check(make_config(train__steps_per_call=0))
