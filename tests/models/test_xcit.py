"""XCiT: its position encoding, attention, names, and the modes of its batch norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import models
from lrat_jax.models import xcit


def test_positions_are_sines_and_cosines_by_turns_of_the_row_and_of_the_column():
  found = xcit.fourier_positions(3, 5)
  assert found.shape == (3, 5, 64) and found.dtype == np.float32
  for row, column, index in ((0, 0, 0), (2, 4, 1), (1, 3, 6), (2, 1, 31)):
    wave, period = (np.cos if index % 2 else np.sin), 10000 ** (index // 2 / 16)
    np.testing.assert_allclose(found[row, column, index], wave(2 * np.pi * (row + 1) / 3 / period), atol=1e-5)
    np.testing.assert_allclose(found[row, column, 32 + index], wave(2 * np.pi * (column + 1) / 5 / period), atol=1e-5)


def test_attention_is_a_mean_of_channels_and_takes_channels_of_zeros():
  """If queries and keys are 0 and only one of 4 channels has values, each channel becomes a quarter of it."""
  layer, x = xcit.CrossCovarianceAttention(1, jnp.float32), jnp.ones((1, 1, 2, 4))
  variables = jax.jit(layer.init)(jax.random.key(0), x)["params"]
  values = jnp.zeros((4, 12)).at[0, 8].set(1.0)  # channel 0 of the values is channel 0 of x; queries and keys are 0
  variables["Dense_0"] = {"kernel": values, "bias": jnp.zeros(12)}
  variables["Dense_1"] = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
  apply = lambda x: layer.apply({"params": variables}, x)
  np.testing.assert_allclose(apply(x), jnp.full((1, 1, 2, 4), 0.25), atol=1e-6)
  assert np.isfinite(jax.jit(jax.grad(lambda x: jnp.sum(apply(x) ** 2)))(x)).all()


@pytest.mark.parametrize("size", xcit.SIZES)
@pytest.mark.parametrize("patch", xcit.STEMS)
def test_names_spell_what_they_are_read_as(size, patch):
  network = models.create(f"xcit_{size}_24_p{patch}", 10).network
  assert (network.width, network.num_heads) == xcit.SIZES[size] and network.layer_scale == 1e-5
  assert network.norm_all == (size != "nano")
  assert xcit.name_of(24, network.width, network.num_heads, network.patch) == f"xcit_{size}_24_p{patch}"
  assert models.create(f"xcit_24_{network.width}_{network.num_heads}_p{patch}", 10).network == network


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("xcit_2_20_4_p4", "WIDTH of xcit_DEPTH_WIDTH_HEADS_pPATCH must be a multiple of 8 and of HEADS"),
    ("xcit_2_16_3_p4", "must be a multiple of 8 and of HEADS"),
    ("xcit_small_12_p2", "is not a model; choose from"),
    ("xcit_huge_12_p4", "is not a model; choose from"),
  ],
)
def test_names_of_no_network_are_refused(name, message):
  with pytest.raises(ValueError, match=message):
    models.create(name, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "size", "classes", "count"),
  # Counts of RobustBench's definitions.
  [
    ("xcit_small_12_p4", 32, 10, 25_872_154),
    ("xcit_small_12_p16", 224, 1000, 26_253_304),
  ],
)
def test_parameter_counts_are_the_published_ones(name, size, classes, count):
  model = models.create(name, classes)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


@pytest.mark.slow
def test_batch_norms_take_the_batch_in_training_and_the_running_averages_else():
  model, images = models.create("xcit_1_16_2_p4", 5), jax.random.uniform(jax.random.key(1), (4, 16, 16, 3))
  variables = model.init(jax.random.key(0), images)
  apply = jax.jit(model.apply, static_argnames=("train", "mutable"))
  first, moved = apply(variables, images, train=True, mutable="batch_stats")
  assert len(jax.tree.leaves(moved)) == len(jax.tree.leaves(variables["batch_stats"])) == 2 * (4 + 1)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_less(0, np.abs(a - b).max()), moved["batch_stats"], variables["batch_stats"]
  )
  alone, _ = apply(variables, images[:1], train=True, mutable="batch_stats")
  assert np.abs(alone - first[:1]).max() > 1e-4
  np.testing.assert_allclose(apply(variables, images[:1]), apply(variables, images)[:1], atol=1e-5)
