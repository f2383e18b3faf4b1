"""AutoAttack reports its progress, stores its results, and continues after an interruption."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from lrat_jax import attacks
from lrat_jax.attacks import _stage_runner
from tests.attacks.autoattack.case import linear, run


def test_progress_counts_the_images_of_a_stages_rounds(model, images, answers):
  told = []
  options = {"attacks_to_run": ["apgd-t"], "overrides": {"apgd-t": {"num_steps": 2}}, "devices": jax.devices()[:1]}
  run(model, images, answers, on_progress=lambda *of: told.append(of), **options)
  names, done, totals = zip(*told, strict=True)
  assert set(names) == {"apgd-t"} and done[:3] == (16, 32, 36) and done[-1] == totals[-1] < totals[0]
  assert list(done) == sorted(set(done)) and list(totals) == sorted(totals, reverse=True)


def test_stages_are_traced_ahead_and_all_but_the_first_not_for_work_that_is_kept(
  monkeypatch, tmp_path, model, images, answers
):
  events = []
  lower = _stage_runner._lower_stage
  monkeypatch.setattr(
    _stage_runner, "_lower_stage", lambda job, stage, plan: (events.append(stage.name), lower(job, stage, plan))[1]
  )
  few = {"apgd-ce": {"num_steps": 1}, "apgd-t": {"num_steps": 1}}
  go = functools.partial(
    run, model, images[:8], answers[:8], overrides=few, store=attacks.FileStore(tmp_path), devices=jax.devices()[:1],
    on_stage=lambda summary: events.append(f"{summary.name} ended"),
  )  # fmt: skip
  go()
  assert events == ["apgd-ce", "apgd-t", "apgd-ce ended", "apgd-t ended"]
  events.clear()
  go()
  assert events == ["apgd-ce", "apgd-ce ended", "apgd-t ended"]


class _Killed(Exception):
  pass


class _Fragile(attacks.FileStore):
  """A store that fails after saving `pieces` pieces, as if the machine had crashed."""

  def __init__(self, directory, pieces):
    super().__init__(directory)
    self._left = pieces
    self.saved = []

  def save(self, piece, arrays):
    if self._left == 0:
      raise _Killed
    self._left -= 1
    self.saved.append(piece)
    super().save(piece, arrays)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, report, model, images, answers):
  with pytest.raises(_Killed):
    run(model, images, answers, store=_Fragile(tmp_path, 3), devices=jax.devices()[:1])
  (tmp_path / "1-apgd-ce-0-8-2.npz").write_bytes(b"cut off")  # as if the file system had lost the end of the file
  second = _Fragile(tmp_path, -1)
  resumed = run(model, images, answers, store=second, devices=jax.devices()[:1])
  np.testing.assert_array_equal(resumed.images, report.images)
  np.testing.assert_array_equal(resumed.broken_by, report.broken_by)
  assert "1-apgd-ce-0-8-0" not in second.saved and "1-apgd-ce-0-8-2" in second.saved
  third = _Fragile(tmp_path, 0)
  again = run(model, images, answers, store=third, devices=jax.devices()[:1])
  assert again.per_attack == resumed.per_attack and third.saved == []


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"epsilon": 0.03}, "threat"),
    ({"batch_size": 32}, "batch size"),
    ({"overrides": {"apgd-ce": {"num_steps": 5}}}, "attacks"),
    ({"scale": 2.0}, "predictions of the model"),
    ({"shift": 1}, "images, labels or example indices"),
  ],
)
def test_a_store_of_other_work_is_refused(change, reason, tmp_path, model, images, answers, linear_weights):
  store = attacks.FileStore(tmp_path)
  small = functools.partial(run, attacks_to_run=["apgd-ce"], store=store, devices=jax.devices()[:1])
  small(model, images[:8], answers[:8])
  change = dict(change)
  other = Partial(linear, jnp.asarray(linear_weights) * change.pop("scale", 1.0))
  first = change.pop("shift", 0)
  with pytest.raises(ValueError, match=f"contains an evaluation that differs in .*{reason}"):
    small(other, images[first : first + 8], answers[first : first + 8], **change)
