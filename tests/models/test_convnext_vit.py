"""ConvNeXt and ViT: their names, published parameter counts, images that do not fit, and activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import models
from lrat_jax.models import convnext, vit
from lrat_jax.models.convnext import ConvNeXt
from lrat_jax.models.vit import VisionTransformer

CONVNEXT = "convnext_1-1_8-12_convstem"
VIT = "vit_1_16_2_4_convstem4"


def _shapes(name, size, num_classes=10):
  model = models.create(name, num_classes)
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "count"),
  # Counts of timm and RobustBench, for ImageNet.
  [
    ("convnext_tiny", 28_589_128),
    ("convnext_small", 50_223_688),
    ("convnext_base", 88_591_464),
    ("convnext_large", 197_767_336),
    ("convnext_tiny_convstem", 28_627_432),
    ("convnext_base_convstem", 88_753_416),
    ("vit_small_16", 22_050_664),
    ("deit_base_16", 86_567_656),
    ("vit_small_16_convstem", 22_777_576),
    ("vit_base_16_convstem", 87_147_112),
  ],
)
def test_parameter_counts_are_the_published_ones(name, count):
  shapes = _shapes(name, (224, 224), 1000)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count and list(shapes) == ["params"]


@pytest.mark.parametrize(
  ("name", "network"),
  [
    ("convnext_base", ConvNeXt(10, *convnext.SIZES["base"])),
    ("convnext_small_convstem", ConvNeXt(10, *convnext.SIZES["small"], convstem=2)),
    ("convnext_large_convstem", ConvNeXt(10, *convnext.SIZES["large"], convstem=3)),
    ("convnext_tiny_convstem3", ConvNeXt(10, *convnext.SIZES["tiny"], convstem=3)),
    ("convnext_tiny_patch2", ConvNeXt(10, *convnext.SIZES["tiny"], patch=2)),
    ("convnext_1-2_8-12_patch1", ConvNeXt(10, (1, 2), (8, 12), 1)),
    ("vit_small_16", VisionTransformer(10, 12, 384, 6, 16)),
    ("vit_base_16_convstem", VisionTransformer(10, 12, 768, 12, 16, 48)),
    ("vit_tiny_4_convstem8", VisionTransformer(10, 12, 192, 3, 4, 8)),
    ("vit_2_32_4_7", VisionTransformer(10, 2, 32, 4, 7)),
  ],
)
def test_names_spell_what_they_are_read_as(name, network):
  assert models.create(name, 10).network == network
  fields = [getattr(network, field) for field in ("patch", "convstem")]
  if isinstance(network, ConvNeXt):
    assert convnext.name_of(network.depths, network.widths, *fields) == name
  else:
    assert vit.name_of(network.depth, network.width, network.num_heads, *fields) == name
    assert models.create(name.replace("vit", "deit"), 10).network == network


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("convnext_huge", "is not a model; choose from"),
    ("convnext_tiny_patch4_convstem", "is not a model; choose from"),
    ("convnext_1-1_8", "DEPTHS and WIDTHS of convnext_DEPTHS_WIDTHS must have the same length"),
    ("convnext_1_6_convstem", "a ConvStem needs a first width that is a multiple of 4"),
    ("vit_small", "is not a model; choose from"),
    ("vit_2_32_5_4", "WIDTH of vit_DEPTH_WIDTH_HEADS_PATCH must be a multiple of HEADS"),
    ("vit_small_12_convstem", "a ConvStem needs a PATCH that is a power of 2"),
    ("vit_small_1_convstem", "a ConvStem needs a PATCH that is a power of 2"),
  ],
)
def test_names_of_no_network_are_refused(name, message):
  with pytest.raises(ValueError, match=message):
    models.create(name, 10)


@pytest.mark.parametrize(
  ("name", "size", "message"),
  [
    ("convnext_tiny", (32, 28), "images of 32x28 are too small for this ConvNeXt, whose stride is 32"),
    (CONVNEXT, (7, 8), "images of 7x8 are too small for this ConvNeXt, whose stride is 8"),
    ("vit_small_16", (28, 32), "images of 28x32 cannot be divided into patches of 16x16"),
    (VIT, (8, 10), "images of 8x10 cannot be divided into patches of 4x4"),
  ],
)
def test_images_that_do_not_fit_are_refused(name, size, message):
  with pytest.raises(ValueError, match=message):
    _shapes(name, size)


def test_the_position_embedding_is_of_one_image_size():
  model = models.create(VIT, 10)
  with pytest.raises(ValueError, match="of 12x12 make 9 patches of 4x4, but the network's position embedding is for 4"):
    jax.eval_shape(model.apply, _shapes(VIT, (8, 8)), jnp.zeros((1, 12, 12, 3)))


def test_a_convnext_takes_images_of_any_size():
  model = models.create(CONVNEXT, 10)
  assert jax.eval_shape(model.apply, _shapes(CONVNEXT, (8, 8)), jnp.zeros((2, 13, 9, 3))).shape == (2, 10)


@pytest.mark.parametrize("name", [CONVNEXT, VIT])
def test_an_activation_replaces_every_other(name):
  gelu, relu = (models.create(name, 5, activation=activation) for activation in ("auto", "relu"))
  assert gelu == models.create(name, 5, activation="gelu")
  programs = [str(jax.make_jaxpr(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))) for model in (gelu, relu)]
  assert [program.count("erfc ") for program in programs] == [4 if name == CONVNEXT else 3, 0]


def test_attention_sees_the_order_of_patches_by_their_positions_alone():
  model = models.create("vit_1_16_2_4", 5)
  images = np.random.default_rng(0).uniform(size=(1, 8, 8, 3)).astype(np.float32)
  swapped = np.concatenate([images[:, 4:], images[:, :4]], axis=1)
  parameters = jax.jit(model.init)(jax.random.key(0), images)["params"]
  parameters = jax.tree.map(lambda leaf: leaf * 10, parameters)
  logits = lambda x: model.apply({"params": parameters}, x)
  assert np.abs(logits(images) - logits(swapped)).max() > 1e-3
  parameters["network"]["pos_embed"] = jnp.zeros_like(parameters["network"]["pos_embed"])
  np.testing.assert_allclose(logits(images), logits(swapped), atol=1e-5)
