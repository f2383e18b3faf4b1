"""The placement of images does not change the batches; "auto" keeps images that fit on accelerators, never on CPU."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lrat_jax import data
from lrat_jax.core import sharding
from tests.helpers import make_split

SPLIT = make_split(40)


@pytest.mark.parametrize("placement", data.PLACEMENTS)
def test_batches_are_the_hosts_split_over_the_devices(placement):
  mesh = sharding.make_mesh(4)
  placed = data.train_batches(SPLIT, 8, 3, data.make_device_put(SPLIT, mesh, placement))
  expected = data.train_batches(SPLIT, 8, 3)
  for _ in range(7):
    batch, on_host = next(placed), next(expected)
    assert batch["images"].sharding.is_equivalent_to(NamedSharding(mesh, sharding.BATCHED), ndim=4)
    jax.tree.map(np.testing.assert_array_equal, sharding.fetch(batch), on_host)


def test_a_placed_iterator_resumes_with_the_very_next_batch():
  place = data.make_device_put(SPLIT, sharding.make_mesh(2), "device")
  batches = data.train_batches(SPLIT, 8, 0, place)
  for _ in range(6):
    next(batches)
  state, expected = batches.get_state(), next(batches)
  fresh = data.train_batches(SPLIT, 8, 0, place)
  fresh.set_state(state)
  np.testing.assert_array_equal(next(fresh)["indices"], expected["indices"])


class _Device:
  def __init__(self, limit):
    self._limit = limit

  def memory_stats(self):
    return None if self._limit is None else {"bytes_limit": self._limit}


@pytest.mark.parametrize(("limits", "on_devices"), [((None,), False), ((8, 8), True), ((8, 2), False)])
def test_auto_keeps_what_fits_in_a_quarter_of_the_smallest_device(limits, on_devices, monkeypatch):
  size = SPLIT.images.nbytes
  mesh = sharding.make_mesh(1)
  devices = [_Device(limit and limit * size // 2) for limit in limits]
  monkeypatch.setitem(vars(mesh), "local_devices", devices)  # JAX caches the property here
  transfers = []
  monkeypatch.setattr(sharding, "replicate", lambda mesh, tree: transfers.append(tree) or jax.device_put(tree))
  data.make_device_put(SPLIT, mesh, "auto")
  assert bool(transfers) == on_devices
