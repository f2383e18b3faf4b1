"""Transformers and ConvNeXt from PyTorch and back: equal logits, identical bits, no guess if tensors are ambiguous."""

import functools
import json
import re

import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from lrat_jax import main, models
from lrat_jax.convert import __main__ as convert
from lrat_jax.convert import exchange, torch_names
from lrat_jax.core.errors import WeightsError
from tests import helpers
from tests import torch_definitions as definitions
from tests.torch_swin import Swin
from tests.torch_transformers import ConvNeXt, VisionTransformer
from tests.torch_xcit import XCiT

PLAIN = {"mean": (0.0,), "std": (1.0,)}
FOUR, SIXTEEN = (1, 1, 2, 2), (2, 2, 2, 2)
# By our names: networks with seven classes and three channels, and the side of their images.
SMALL = {
  "xcit_2_16_2_p4": (lambda: XCiT(FOUR, 2, 16, 2, 7), 16),
  "xcit_1_24_3_p8": (lambda: XCiT((2, 2, 2), 1, 24, 3, 7), 24),
  "xcit_2_16_2_p16": (lambda: XCiT(SIXTEEN, 2, 16, 2, 7), 48),
  "xcit_nano_1_p4": (lambda: XCiT(FOUR, 1, 128, 4, 7, norm_all=False), 16),
  "swin_2-2_32_patch2_window4": (lambda: Swin((2, 2), 32, 2, 4, 16, 7), 16),
  "swin_1-2_64_patch1_window2": (lambda: Swin((1, 2), 64, 1, 2, 8, 7, old=True), 8),
  "swin_2-2_32_patch2_window4_mean_sparse": (lambda: Swin((2, 2), 32, 2, 4, 16, 7, mean_sparse=True), 16),
  "swin_2-2_32_patch2_window4_eps1e-6": (lambda: Swin((2, 2), 32, 2, 4, 16, 7, epsilon=1e-6, old=True), 16),
  "convnext_1-2-1_8-12-16_patch2": (lambda: ConvNeXt((1, 2, 1), (8, 12, 16), 7, patch=2), 12),
  "convnext_2-1_8-12_mean_sparse": (lambda: ConvNeXt((2, 1), (8, 12), 7, mean_sparse=True), 16),
  "convnext_2-1_8-12_convstem": (lambda: ConvNeXt((2, 1), (8, 12), 7, stem_widths=(4, 8)), 16),
  "convnext_1-1_8-12_convstem3": (lambda: ConvNeXt((1, 1), (8, 12), 7, stem_widths=(4, 6, 8)), 16),
  "vit_2_24_3_4": (lambda: VisionTransformer(2, 24, 3, 4, 12, 7), 12),
  "vit_1_16_2_8_convstem4": (lambda: VisionTransformer(1, 16, 2, 8, 16, 7, stem_width=4), 16),
}
_T, _B = ((3, 3, 9, 3), (96, 192, 384, 768)), ((3, 3, 27, 3), (128, 256, 512, 1024))
FULL = {
  "convnext_tiny": (lambda: ConvNeXt(*_T), 224),
  "convnext_tiny_convstem": (lambda: ConvNeXt(*_T, stem_widths=(48, 96)), 224),
  "convnext_base_convstem": (lambda: ConvNeXt(*_B, stem_widths=(64, 96, 128)), 224),
  "convnext_large": (lambda: ConvNeXt((3, 3, 27, 3), (192, 384, 768, 1536)), 224),
  "vit_small_16": (lambda: VisionTransformer(12, 384, 6, 16, 224), 224),
  "vit_base_16_convstem": (lambda: VisionTransformer(12, 768, 12, 16, 224, stem_width=48), 224),
  "xcit_small_12_p4": (lambda: XCiT(FOUR, 12, 384, 8, 100), 32),
  "xcit_medium_12_p16": (lambda: XCiT(SIXTEEN, 12, 512, 8, 1000), 224),
  "xcit_large_12_p4": (lambda: XCiT(FOUR, 12, 768, 16, 10), 32),
  "swin_base_window7": (lambda: Swin((2, 2, 18, 2), 128, 4, 7, 224, 1000), 224),
  "swin_large_window14_eps1e-6": (
    lambda: Swin((2, 2, 18, 2), 192, 4, 14, 224, 1000, epsilon=1e-6, old=True),
    224,
  ),
}


# Read with the original code's tensor names, and written with timm's.
ORIGINAL = {"swin_1-2_64_patch1_window2": lambda: Swin((1, 2), 64, 1, 2, 8, 7)}
COUNTED = "num_batches_tracked|relative_position_index|attn_mask|flag_update_statistics|batch_num|momentum|epsilon"
# Ranges of variables that are never negative or close to 0 in a trained network.
RANGES = {"scale": (0.5, 1.5), "var": (0.5, 1.5), "temperature": (0.5, 1.5), "threshold": (0.1, 0.3)}


def _pictures(size, count=4):
  """float32 [count, size, size, 3] in [0, 1] with large patches, because the means of pure noise are all alike."""
  patches = np.random.default_rng(0).uniform(size=(count, 4, 4, 3)).astype(np.float32)
  return patches.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


@functools.cache
def _trained(name):
  """(a network after `spread`, with biases reduced so that logits depend on the images; images)."""
  make, size = (SMALL | FULL)[name]
  images = _pictures(size, 4 if name in SMALL else 2)
  network = definitions.spread(make(), images)
  with torch.no_grad():
    for module in network.modules():
      if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.LayerNorm) and module.bias is not None:
        module.bias *= 0.1
      if isinstance(module, torch.nn.LayerNorm):
        module.weight.abs_().add_(0.5)
      if hasattr(module, "threshold"):
        module.running_mean.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
        module.running_var.fill_(0.5)
        module.threshold.fill_(0.4)
  return network, images


def _load(network, path):
  """Loads a file into the network; the file must have all of its tensors except those that it counts or computes."""
  missing, left = network.load_state_dict(safetensors.torch.load_file(path), strict=False)
  assert not left and all(re.search(COUNTED, key) for key in missing)
  return network.eval()


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in FULL)])
def test_logits_are_equal_and_tensors_come_back_to_the_bit(name, tmp_path):
  network, images = _trained(name)
  tensors = network.state_dict()
  torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in tensors.items()}}, tmp_path / "a.pt")
  stored = exchange.read(tmp_path / "a.pt", architecture=name, **PLAIN)
  assert (stored.recognised.name, stored.recognised.channels) == (name, 3)
  model, expected = stored.build(), definitions.logits(network, images)
  assert np.abs(expected).max() > 1 and np.ptp(expected, axis=0).max() > 0.05
  np.testing.assert_allclose(model.logits_fn(images), expected, atol=1e-4)
  exchange.save(tmp_path / "b.safetensors", model.module, model.variables)
  again = exchange.load(tmp_path / "b.safetensors")  # its metadata name the architecture
  assert again.module == model.module
  jax.tree.map(np.testing.assert_array_equal, again.variables, model.variables)
  remade = _load(ORIGINAL[name]() if name in ORIGINAL else (SMALL | FULL)[name][0](), tmp_path / "b.safetensors")
  np.testing.assert_array_equal(definitions.logits(remade, images), expected)


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ORIGINAL])
def test_a_model_of_ours_loads_in_pytorch_with_equal_logits(name, tmp_path):
  make, size = SMALL[name]
  model, images, generator = models.create(name, 7, mean=(0.4,), std=(0.3,)), _pictures(size), np.random.default_rng(1)

  def draw(path, leaf):
    low, high = RANGES.get(path[-1].key, (-0.3, 0.3))
    return generator.uniform(low, high, leaf.shape).astype(np.float32)

  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  variables = jax.tree_util.tree_map_with_path(draw, shapes)
  named = torch_names.entries(model.network, shapes)
  assert len({entry.path for entry in named}) == len({entry.name for entry in named}) == len(jax.tree.leaves(shapes))
  exchange.save(tmp_path / "a.safetensors", model, variables)
  network = _load(make(), tmp_path / "a.safetensors")
  theirs = definitions.logits(definitions.Normalised(network, (0.4,), (0.3,)).eval(), images)
  np.testing.assert_allclose(jax.jit(models.applied(model))(variables, images), theirs, atol=1e-4)
  assert np.abs(theirs).max() > 0.5


@pytest.mark.parametrize(
  ("name", "other"),
  [
    ("xcit_2_16_2_p4", "xcit_2_16_2_p16"),
    ("xcit_2_16_2_p16", "xcit_2_16_2_p4"),
    ("swin_1-2_64_patch1_window2", "swin_1-2_64_patch1_window2_eps1e-6"),
    ("vit_2_24_3_4", "vit_2_24_4_4"),
  ],
)
def test_what_no_tensor_tells_is_asked_for(name, other, tmp_path):
  network, images = _trained(name)
  torch.save(network.state_dict(), tmp_path / "a.pt")
  with pytest.raises(WeightsError, match=r"the network among those that its tensors fit \(--architecture="):
    exchange.read(tmp_path / "a.pt", **PLAIN)
  with pytest.raises(WeightsError, match=r"a.pt: its tensors fit .* or .*, not --architecture=resnet18"):
    exchange.read(tmp_path / "a.pt", architecture="resnet18", **PLAIN)
  found = exchange.load(tmp_path / "a.pt", architecture=other, **PLAIN)
  assert found.module.network == models.create(other, 7).network
  assert np.abs(found.logits_fn(images) - definitions.logits(network, images)).max() > 1e-7


def test_any_number_of_heads_that_divides_the_width_fits_a_vit():
  found = torch_names.recognise(_shapes(VisionTransformer(2, 24, 3, 4, 12, 7)))
  assert list(found.fitting) == [f"vit_2_24_{heads}_4" for heads in (1, 2, 3, 4, 6, 8, 12, 24)]
  of_a_size = torch_names.recognise(_shapes(VisionTransformer(12, 192, 3, 4, 12, 7)))
  assert list(of_a_size.fitting) == ["vit_tiny_4"]


def test_what_tensors_tell_needs_no_word(tmp_path):
  torch.save(_trained("xcit_1_24_3_p8")[0].state_dict(), tmp_path / "a.pt")
  assert exchange.read(tmp_path / "a.pt", **PLAIN).recognised.name == "xcit_1_24_3_p8"
  with pytest.raises(WeightsError, match="fit xcit_1_24_3_p8, not --architecture=xcit_1_24_3_p4"):
    exchange.read(tmp_path / "a.pt", architecture="xcit_1_24_3_p4", **PLAIN)


def _shapes(network):
  return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"patch_embed.proj.8.0.weight": (16, 16, 3, 3)}, "must have a stem of .* convolutions, not of 5"),
    ({"blocks.0.attn.temperature": (2,)}, r"temperature has the shape \[2\]"),
  ],
)
def test_an_xcit_that_is_none_here_is_refused(change, message):
  with pytest.raises(torch_names.UnknownNetworkError, match=message):
    torch_names.recognise(_shapes(XCiT(FOUR, 1, 16, 2)) | change)


def test_windows_that_are_not_square_are_refused():
  table = "layers.0.blocks.0.attn.relative_position_bias_table"
  with pytest.raises(torch_names.UnknownNetworkError, match="is for windows that are not square"):
    torch_names.recognise(_shapes(Swin((1,), 32, 2, 4, 8)) | {table: (15, 1)})


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["xcit_1_16_2_p4", "swin_2_32_patch1_window4", "convnext_1-1-1_8-12-16_patch1", "vit_2_16_2_2"]
)
def test_a_run_is_trained_goes_out_and_is_evaluated_the_same(name, tmp_path):
  fields = (f"--config.{field}={value}" for field, value in (helpers.SMALL | {"model.name": name}).items())
  arguments = ["--config=at:digits,suite=pgd", *fields, "--config.eval.num_images=100"]
  assert main.main([*arguments, f"--workdir={tmp_path}/run"]) == 0
  assert convert.main([f"{tmp_path}/run", f"{tmp_path}/mine.safetensors"]) == 0
  evaluation = [argument for argument in arguments if ".train" not in argument]
  assert main.main([*evaluation, f"--model={tmp_path}/mine.safetensors", f"--workdir={tmp_path}/evaluated"]) == 0
  results, expected = (json.loads((tmp_path / folder / "results.json").read_text()) for folder in ("evaluated", "run"))
  assert results["architecture"] == name
  assert (results["clean"], results["robust"]) == (expected["clean"], expected["robust"])
