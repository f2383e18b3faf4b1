"""MeanSparse: which values it changes, its gradient, how it is fitted, and where networks have it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from lrat_jax import models
from lrat_jax.models import layers
from lrat_jax.models.mean_sparse import MeanSparse

# Network -> (number of activations, number of MeanSparse layers elsewhere). Pre-activation blocks, and those of Swin
# and ConvNeXt, also have a MeanSparse at their ends.
ACTIVATIONS = {
  "resnet18_4": (17, 0), "resnet50_4": (49, 0), "preact_resnet18_4": (17, 8), "wong_preact_resnet18_4": (16, 8),
  "wide_resnet_10_1": (7, 3), "ra_wide_resnet_6_2x8_1x12_1x20": (9, 4), "convnext_1-1_8-12_patch2": (2, 2),
  "convnext_1-1_8-12_convstem": (4, 2), "vit_2_16_2_4": (2, 0), "vit_2_16_2_4_convstem": (4, 0),
  "xcit_1_16_2_p4": (7, 0), "swin_1-1_32_patch1_window4": (2, 6),
}  # fmt: skip
VALUES = jnp.array([[0.0, 0.9, 1.1, -3.0], [2.0, 1.0, 3.2, 0.0]]).T  # two channels


def _apply(x, threshold):
  stats = {"mean": jnp.array([0.5, 2.0]), "var": jnp.array([1.0, 4.0]), "threshold": threshold}
  return MeanSparse().apply({"batch_stats": stats}, x)


def test_values_near_the_mean_of_their_channel_become_it():
  expected = np.array([[0.5, 0.5, 1.1, -3.0], [2.0, 2.0, 3.2, 0.0]]).T
  np.testing.assert_allclose(_apply(VALUES, 0.55), expected, atol=1e-6)


def test_without_a_threshold_nothing_changes():
  np.testing.assert_array_equal(_apply(VALUES, 0.0), VALUES)
  variables = MeanSparse().init(jax.random.key(0), VALUES)
  np.testing.assert_array_equal(MeanSparse().apply(variables, VALUES), VALUES)
  assert "params" not in variables


def test_the_gradient_is_0_where_values_became_the_mean():
  gradient = jax.grad(lambda x: jnp.sum(_apply(x, 0.55)))(VALUES)
  np.testing.assert_array_equal(gradient, np.array([[0, 0, 1, 1], [0, 0, 1, 1]]).T)


class Hidden(nn.Module):
  """A network with one hidden layer, followed by a MeanSparse."""

  mean_sparse: bool = True

  @nn.compact
  def __call__(self, images, train=False):
    hidden = nn.Dense(6)(images.reshape(len(images), -1))
    return nn.Dense(5)(layers.activation("relu", self.mean_sparse)(hidden))


def test_a_network_is_fitted_to_what_reaches_its_activations_before_it_is_sparse():
  model, images = models.Classifier(Hidden(), (0.0,), (1.0,)), jax.random.uniform(jax.random.key(0), (12, 4, 4, 1))
  plain = models.Classifier(Hidden(False), (0.0,), (1.0,))
  trained = plain.init(jax.random.key(1), images)
  batches = [images[:6], images[6:]]
  fitted = models.fit_mean_sparse(model, trained, batches, 0.5)
  layer = trained["params"]["network"]["Dense_0"]
  hidden = np.asarray(images.reshape(2, 6, -1) @ layer["kernel"] + layer["bias"])
  found = fitted["batch_stats"]["network"]["MeanSparse_0"]
  np.testing.assert_allclose(found["mean"], hidden.mean(axis=(0, 1)), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found["var"], hidden.var(axis=1, ddof=1).mean(axis=0), rtol=1e-5)
  assert found["threshold"] == 0.5
  near = np.abs(hidden - np.asarray(found["mean"])) < 0.5 * np.sqrt(found["var"])
  head = trained["params"]["network"]["Dense_1"]
  expected = np.maximum(np.where(near, found["mean"], hidden), 0) @ head["kernel"] + head["bias"]
  np.testing.assert_allclose(model.apply(fitted, images), expected.reshape(12, -1), rtol=1e-4, atol=1e-5)
  assert near.any() and not near.all()


def test_batch_norms_averages_are_kept_as_it_is_fitted():
  images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
  sparse, plain = (models.create("wide_resnet_10_1", 5, mean_sparse=of) for of in (True, False))
  trained = jax.jit(plain.init)(jax.random.key(1), images)
  trained["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.5, trained["batch_stats"])
  far = models.fit_mean_sparse(sparse, trained, [images], 0.8)
  fitted = models.fit_mean_sparse(sparse, far, [images], 0.0)  # from variables that are already sparse
  before = traverse_util.flatten_dict(far["batch_stats"])
  for path, leaf in traverse_util.flatten_dict(fitted["batch_stats"]).items():
    np.testing.assert_array_equal(leaf, 0 if path[-1] == "threshold" else before[path])
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  assert shapes(fitted) == shapes(jax.eval_shape(sparse.init, jax.random.key(0), images))
  np.testing.assert_array_equal(jax.jit(sparse.apply)(fitted, images), jax.jit(plain.apply)(trained, images))
  variances = [leaf for path, leaf in traverse_util.flatten_dict(fitted["batch_stats"]).items() if "Mean" in path[-2]]
  assert len(variances) == 30 and all(np.all(np.isfinite(leaf)) for leaf in variances)


def test_what_cannot_be_fitted_is_refused_in_one_line():
  images = jnp.zeros((2, 4, 4, 1))
  model, plain = (models.Classifier(Hidden(of), (0.0,), (1.0,)) for of in (True, False))
  variables = plain.init(jax.random.key(0), images)
  for of, batches, threshold, message in (
    (model, [images], -0.1, "threshold=-0.1 must be 0 or more"),
    (model, [images], float("nan"), "threshold=nan must be 0 or more"),
    (model, [], 0.1, "batches is empty"),
    (plain, [images], 0.1, "the network has no MeanSparse"),
  ):
    with pytest.raises(ValueError, match=message):
      models.fit_mean_sparse(of, variables, batches, threshold)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_it_stands_before_every_activation_and_changes_nothing_at_first(name, monkeypatch):
  images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
  sparse, plain = (models.create(name, 5, mean_sparse=mean_sparse) for mean_sparse in (True, False))
  assert sparse == models.create(f"{name}_mean_sparse", 5) != plain
  order, kind = [], plain.network.activation
  monkeypatch.setitem(models.ACTIVATIONS, kind, lambda x: order.append("activation") or jax.nn.relu(x))
  call = MeanSparse.__call__
  monkeypatch.setattr(MeanSparse, "__call__", lambda self, x: order.append("sparse") or call(self, x))
  variables = jax.eval_shape(sparse.init, jax.random.key(0), images)
  activations, ends = ACTIVATIONS[name]
  assert order.count("activation") == activations and order.count("sparse") == activations + ends
  before = [order[at - 1] for at, what in enumerate(order) if what == "activation"]
  assert before == ["sparse"] * activations and order[0] == "sparse"
  paths = traverse_util.flatten_dict(variables["batch_stats"])
  assert sum(path[-1] == "threshold" for path in paths) == activations + ends


@pytest.mark.parametrize("name", [pytest.param("wide_resnet_10_1", marks=pytest.mark.slow), "vit_1_16_2_4"])
def test_a_threshold_changes_logits_and_none_changes_nothing(name):
  images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
  sparse, plain = (models.create(name, 5, mean_sparse=mean_sparse) for mean_sparse in (True, False))
  variables = jax.jit(sparse.init)(jax.random.key(0), images)
  expected = jax.jit(plain.init)(jax.random.key(0), images)
  for path, leaf in traverse_util.flatten_dict(expected["params"]).items():
    np.testing.assert_array_equal(traverse_util.flatten_dict(variables["params"])[path], leaf)
  logits = jax.jit(sparse.apply)(variables, images)
  np.testing.assert_array_equal(logits, jax.jit(plain.apply)(expected, images))
  far = {"threshold": 0.5, "var": 1.0}
  reach = lambda path, leaf: jnp.full_like(leaf, far[path[-1].key]) if path[-1].key in far else leaf
  stats = jax.tree_util.tree_map_with_path(reach, variables["batch_stats"])
  assert jnp.abs(sparse.apply(variables | {"batch_stats": stats}, images) - logits).max() > 1e-3
