"""The outputs of a network besides its logits: its features, the outputs of its stages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.tree_util import Partial

from lrat_jax import attacks, models
from lrat_jax.models import user_model
from lrat_jax.models.layers import stage_ends

# name -> (height, channels) of each stage's output, on images of 8 x 8.
STAGES = {
  "cnn_4": [(8, 4), (4, 4), (4, 8), (2, 8)],
  "resnet18_4": [(8, 4), (4, 8), (2, 16), (1, 32)],
  "preact_resnet18_4": [(8, 4), (4, 8), (2, 16), (1, 32)],
  "wide_resnet_10_1": [(8, 16), (4, 32), (2, 64)],
  "convnext_2-1_8-12_patch2": [(4, 8), (2, 12)],
  "swin_2-1_32_patch1_window4": [(8, 32), (4, 64)],
  # If all blocks are alike: the outputs of four, or of all if there are fewer; the class token for a ViT's last one.
  "vit_9_16_2_2": [(4, 16), (4, 16), (4, 16), (1, 16)],
  "vit_2_16_2_4": [(2, 16), (1, 16)],
  "xcit_6_16_2_p4": [(2, 16)] * 4,
}


def _logits_fn(name):
  model = models.create(name, 5, mean=(0.4,), std=(0.2,))
  return Partial(models.applied(model), jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))


@pytest.mark.parametrize("name", STAGES)
def test_a_network_gives_the_outputs_of_its_stages(name):
  model, images = models.create(name, 5), jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  assert set(variables) <= {"params", "batch_stats"}
  found = jax.eval_shape(models.applied(model).features, variables, images)
  assert [layer.shape for layer in found] == [(2, height, height, channels) for height, channels in STAGES[name]]


def test_the_last_features_of_a_resnet_are_what_its_logits_are_made_of():
  logits_fn = _logits_fn("resnet18_4")
  images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 3))
  head = logits_fn.args[0]["params"]["network"]["Dense_0"]
  last = models.features_of(logits_fn)(images)[-1]
  expected = last.mean(axis=(1, 2)) @ head["kernel"] + head["bias"]
  np.testing.assert_allclose(logits_fn(images), expected, atol=1e-5)


def test_the_last_features_of_a_vit_are_what_its_logits_are_made_of():
  logits_fn = _logits_fn("vit_2_16_2_4")
  images, network = jax.random.uniform(jax.random.key(1), (3, 8, 8, 3)), logits_fn.args[0]["params"]["network"]
  token = models.features_of(logits_fn)(images)[-1][:, 0, 0]
  centred = token - token.mean(axis=1, keepdims=True)
  normed = centred / jnp.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6)
  normed = normed * network["LayerNorm_0"]["scale"] + network["LayerNorm_0"]["bias"]
  expected = normed @ network["Dense_0"]["kernel"] + network["Dense_0"]["bias"]
  np.testing.assert_allclose(logits_fn(images), expected, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 9, 12, 24])
def test_four_stages_of_like_blocks_end_with_the_last(depth):
  ends = sorted(stage_ends(depth))
  assert len(ends) == min(depth, 4) and ends[-1] == depth and ends[0] >= 1
  assert np.ptp(np.diff([0, *ends])) <= 1


@pytest.mark.parametrize(
  "name", ["convnext_1-1_8-12_patch2", "swin_1-1_32_patch1_window4", "vit_2_16_2_4", "xcit_1_16_2_p4"]
)
def test_lpips_measures_in_the_features_of_every_family(name):
  """The distance is 0 for equal images and does not depend on the other images of a batch; its gradient is finite."""
  features_fn = models.features_of(_logits_fn(name))
  images, others = jax.random.uniform(jax.random.key(1), (2, 3, 8, 8, 3))
  distance = jax.jit(functools.partial(attacks.lpips_distance, features_fn))
  found = distance(images, others)
  assert (distance(images, images) == 0).all() and (found > 0.01).all()
  np.testing.assert_allclose(distance(images[1:2], others[1:2]), found[1:2], rtol=1e-4)
  assert jnp.isfinite(jax.grad(lambda x: distance(x, others).sum())(images)).all()


def test_a_watched_model_gives_its_features_too():
  logits_fn, images = _logits_fn("cnn_4"), np.zeros((2, 8, 8, 3), np.float32)
  watched, _ = user_model.checked("it", logits_fn, images)
  features = (models.features_of(found)(images) for found in (logits_fn, watched))
  jax.tree.map(np.testing.assert_array_equal, *features)


class Mute(nn.Module):
  """A network that sows nothing."""

  @nn.compact
  def __call__(self, images, train=False):
    return nn.Dense(5)(images.reshape(len(images), -1))


def test_a_model_without_features_is_named():
  model = models.Classifier(Mute(), (0.0,), (1.0,))
  images = jnp.zeros((1, 8, 8, 3))
  logits_fn = Partial(models.applied(model), model.init(jax.random.key(0), images))
  with pytest.raises(ValueError, match="the network provides no features; its module must sow the outputs of its"):
    models.features_of(logits_fn)(images)
  for other in (lambda images: images, Partial(model.apply, {})):
    with pytest.raises(ValueError, match="the model provides only logits, no features"):
      models.features_of(other)
