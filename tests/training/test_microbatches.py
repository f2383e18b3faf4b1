"""A batch in microbatches: gradient and global weights are those of the whole batch, memory is that of a part."""

import jax
import numpy as np
import pytest

from lrat_jax.config import validate
from lrat_jax.core.errors import ConfigError
from lrat_jax.training.phases import Phase
from tests.helpers import make_config, make_experiment
from tests.training.step_case import FIELDS, lowered, train

BOTH = Phase(use_local_weights=True, use_global_weights=True)
PERTURBED = Phase(use_local_weights=True, use_global_weights=True, use_awp=True)


def _assert_alike(fields, phase, microbatches, num_devices=1):
  """Five steps in microbatches give the same state, and the same outputs per image, as steps on whole batches."""
  (state, outputs), (whole_state, whole_outputs) = (
    train(num_devices, phase, 5, **fields, train__microbatches=count) for count in (microbatches, 1)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state, whole_state)
  for output, whole in zip(outputs, whole_outputs, strict=True):
    for name, value in output._asdict().items():
      np.testing.assert_allclose(value, getattr(whole, name), rtol=1e-3, atol=1e-4, err_msg=name)
  return outputs


@pytest.mark.parametrize("kind", ["gairat", "mail"])
def test_global_weights_are_of_the_whole_batch(kind):
  fields = {"global_weights__kind": kind, "global_weights__mail__bias": 0.1, "global_weights__gairat__bias": -0.4}
  outputs = _assert_alike(fields, BOTH, microbatches=4)
  parts = np.mean(np.reshape([output.global_weights for output in outputs], (-1, 4)), axis=1)
  np.testing.assert_allclose(np.mean(parts), 1, rtol=1e-5)
  assert np.ptp(parts) > 1e-3  # if computed within each part, their mean would be 1 in every part


@pytest.mark.slow
@pytest.mark.parametrize(
  ("fields", "phase", "num_devices"),
  [
    ({"objective": "trades"}, Phase(use_local_weights=True, use_global_weights=False), 1),
    ({"objective": "mart", "awp__gamma": 0.01, "global_weights__kind": "mail"}, PERTURBED, 2),
    ({"global_weights__kind": "tests.user_functions:squares", "data__mixup": 0.5}, BOTH, 2),
    ({"train__variants": "sampled", "train__label_smoothing": 0.1}, BOTH, 1),
  ],
)
def test_a_batch_in_parts_trains_the_model_of_the_whole_batch(fields, phase, num_devices):
  _assert_alike(fields, phase, microbatches=4, num_devices=num_devices)


@pytest.mark.slow
def test_batch_norm_goes_by_each_part():
  fields = {"model__name": "wide_resnet_10_1", "train_attacks__pgd__epsilon": "0"}
  state, outputs = train(1, BOTH, 1, **fields, train__microbatches=2)
  whole, whole_outputs = train(1, BOTH, 1, **fields)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
  assert np.abs(outputs[0].vulnerabilities - whole_outputs[0].vulnerabilities).max() > 1e-4
  # Two parts move the running averages by 1 - 0.9^2; a whole batch moves them by 1 - 0.9.
  moved = lambda state: np.mean([np.abs(leaf).sum() for path, leaf in _means(state)])
  assert moved(state) > 1.5 * moved(whole)


def _means(state):
  leaves = jax.tree.leaves_with_path(state.variables["batch_stats"])
  return [(path, leaf) for path, leaf in leaves if "mean" in jax.tree_util.keystr(path)]


@pytest.mark.slow
def test_memory_is_that_of_a_part():
  fields = FIELDS | {"model__name": "wide_resnet_10_1", "data__batch_size": 64}
  used = {}
  for count in (1, 4):
    experiment = make_experiment(make_config(**fields, train__microbatches=count), shape=(16, 16, 1))
    used[count] = lowered(experiment, BOTH, size=64).compile().memory_analysis().temp_size_in_bytes
  assert used[4] < 0.4 * used[1]


def test_parts_that_no_batch_has_are_refused():
  config = make_config(train__microbatches=3, data__batch_size=16)
  with pytest.raises(ConfigError, match=r"microbatches=3 does not divide the 8 images .* choose from \[1, 2, 4, 8\]"):
    validate.check_for_devices(config, 2)
  config = make_config("digits,pgd,pgd_l2", train__microbatches=2, logit_pairing__weight=1.0)
  with pytest.raises(ConfigError, match=r"microbatches=2: logit pairing averages over the whole batch"):
    validate.check(config)
  with pytest.raises(ConfigError, match=r"train.microbatches=0 is outside \[1"):
    validate.check(make_config(train__microbatches=0))
