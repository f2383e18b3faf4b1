"""What a network gives besides its logits: the outputs of its stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.tree_util import Partial

from lrat_jax import models
from lrat_jax.models import user_model

# name -> height and channels of each stage's output, on images of 8 x 8.
STAGES = {
  "cnn_4": [(8, 4), (4, 4), (4, 8), (2, 8)],
  "resnet18_4": [(8, 4), (4, 8), (2, 16), (1, 32)],
  "preact_resnet18_4": [(8, 4), (4, 8), (2, 16), (1, 32)],
  "wide_resnet_10_1": [(8, 16), (4, 32), (2, 64)],
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
  with pytest.raises(ValueError, match="the network gives no features; its module must sow its stages' outputs"):
    models.features_of(logits_fn)(images)
  for other in (lambda images: images, Partial(model.apply, {})):
    with pytest.raises(ValueError, match="the model gives logits and no features"):
      models.features_of(other)
