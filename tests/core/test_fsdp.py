"""How a state is sharded over devices, and how its parts are gathered and scattered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lrat_jax.core import fsdp, hlo, sharding
from lrat_jax.core.errors import ConfigError

SHAPES = {"kernel": (3, 3, 8, 16), "matrix": (16, 16), "odd": (3, 5, 25), "bias": (16,), "count": ()}
TREE = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}


def test_large_arrays_are_split_along_the_largest_axis_that_the_devices_divide():
  specs = fsdp.specs(TREE, sharding.make_mesh(4, 2), shard_above=100)
  split, whole = (None, None, None, "model"), PartitionSpec()
  assert specs == {
    "kernel": PartitionSpec(*split), "matrix": PartitionSpec(None, "model"), "odd": whole, "bias": whole, "count": whole
  }  # fmt: skip
  assert fsdp.specs(TREE, sharding.make_mesh(4, 2), shard_above=256)["matrix"] == whole
  assert fsdp.specs(TREE, sharding.make_mesh(4, 2), shard_above=0)["bias"] == PartitionSpec("model")
  assert set(fsdp.specs(TREE, sharding.make_mesh(4), shard_above=0).values()) == {whole}


def test_devices_next_to_one_another_share_an_array_and_rows_stay_in_the_order_of_devices():
  mesh, devices = sharding.make_mesh(4, 2), jax.devices()
  assert mesh.devices.tolist() == [devices[:2], devices[2:4]] and mesh.axis_names == sharding.AXIS
  rows = sharding.shard_batch(mesh, np.arange(8))
  assert [shard.data.tolist() for shard in sorted(rows.addressable_shards, key=lambda shard: shard.device.id)] == [
    [0, 1], [2, 3], [4, 5], [6, 7]
  ]  # fmt: skip


def test_a_number_of_devices_that_does_not_fit_is_one_line():
  with pytest.raises(ConfigError, match=r"^config.mesh.model_devices=3 does not divide the 4 devices in use\.$"):
    sharding.make_mesh(4, 3)


@pytest.mark.parametrize("model_devices", [1, 2, 4])
def test_the_mean_over_devices_is_that_of_all_and_lies_in_parts(model_devices):
  mesh = sharding.make_mesh(4, model_devices)
  shapes = {"kernel": (3, 8), "bias": (8,)}
  specs = fsdp.specs({name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}, mesh, shard_above=8)
  rows = {name: np.random.default_rng(0).normal(size=(4, *shape)) for name, shape in shapes.items()}
  rows = jax.tree.map(lambda x: x.astype(np.float32), rows)

  def on_device(rows, place):
    own = jax.tree.map(lambda x: x[0], rows)
    mean, loss = fsdp.mean((own, place[0]), (specs, sharding.REPLICATED))
    return mean, loss, fsdp.all_gather(mean, specs)

  out_specs = (specs, sharding.REPLICATED, sharding.REPLICATED)
  mapped = jax.jit(sharding.shard_map(on_device, mesh, sharding.BATCHED, out_specs))
  batch = sharding.shard_batch(mesh, (rows, np.arange(4.0, dtype=np.float32)))
  mean, loss, gathered = mapped(*batch)
  assert loss == 1.5
  for name, array in rows.items():
    np.testing.assert_allclose(mean[name], array.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(gathered[name], array.mean(axis=0), rtol=1e-6)
  assert mean["kernel"].addressable_shards[0].data.shape == (3, 8 // model_devices)
  found = hlo.collectives(mapped.lower(*batch).compile().as_text())
  assert found["all-reduce"] == 1 + (model_devices > 1)
  assert found.get("reduce-scatter", 0) == (model_devices > 1)


def test_parts_become_whole_on_every_device_and_what_is_whole_is_not_copied():
  mesh, tree = sharding.make_mesh(4, 2), {"kernel": np.arange(32.0).reshape(4, 8), "bias": np.ones(3)}
  placed = sharding.put(tree, mesh, fsdp.specs(tree, mesh, shard_above=3))
  assert not placed["kernel"].is_fully_replicated and placed["bias"].is_fully_replicated
  whole = fsdp.whole(placed, mesh)
  assert all(len(leaf.sharding.device_set) == 4 and leaf.is_fully_replicated for leaf in jax.tree.leaves(whole))
  jax.tree.map(np.testing.assert_array_equal, whole, tree)
  assert fsdp.whole(whole, mesh) is whole
  assert fsdp.bytes_per_device(placed) == 4 * (32 // 2 + 3)


def test_cores_that_share_a_state_are_as_many_as_it_asks_for(monkeypatch):
  told = {}
  monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.setattr(sharding, "num_cores", lambda: 3)
  monkeypatch.setattr(jax.config, "update", told.__setitem__)
  for model_devices, num_devices in ((1, 3), (2, 2), (5, 3)):
    sharding.use_cpu_cores(96, model_devices=model_devices)
    assert told == {"jax_num_cpu_devices": num_devices}
