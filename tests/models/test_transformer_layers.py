"""The layers of ConvNeXt and of transformers, compared with PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from lrat_jax.models import transformer_layers as layers

TOKENS = np.random.default_rng(0).normal(3, 2, (2, 5, 12)).astype(np.float32)


def _random(layer, x):
  """(random parameters in place of the initial ones, the layer's output)."""
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
  generator = np.random.default_rng(1)
  variables = jax.tree.map(lambda leaf: generator.normal(0.2, 0.3, leaf.shape).astype(np.float32), shapes)
  return variables["params"], layer.apply(variables, x)


def _linear(dense):
  kernel, bias = (torch.tensor(dense[name]) for name in ("kernel", "bias"))
  return lambda x: x @ kernel + bias


def _attention(parameters, x, num_heads, bias=0.0):
  """The output of PyTorch's scaled_dot_product_attention with these parameters."""
  batch, tokens, channels = x.shape
  qkv = _linear(parameters["Dense_0"])(x).reshape(batch, tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
  mask = torch.zeros(batch, num_heads, tokens, tokens) + torch.as_tensor(bias)
  attended = nn.functional.scaled_dot_product_attention(*qkv, attn_mask=mask)
  return _linear(parameters["Dense_1"])(attended.transpose(1, 2).reshape(batch, tokens, channels))


@pytest.mark.parametrize("num_heads", [1, 3])
def test_attention_is_pytorchs(num_heads):
  parameters, ours = _random(layers.SelfAttention(num_heads), TOKENS)
  np.testing.assert_allclose(ours, _attention(parameters, torch.tensor(TOKENS), num_heads), atol=1e-5)


def test_a_bias_goes_to_the_scores_of_each_head():
  bias = np.random.default_rng(2).normal(0, 2, (1, 3, 5, 5)).astype(np.float32)
  layer = layers.SelfAttention(3)
  parameters, plain = _random(layer, TOKENS)
  ours = layer.apply({"params": parameters}, TOKENS, bias)
  np.testing.assert_allclose(ours, _attention(parameters, torch.tensor(TOKENS), 3, bias), atol=1e-5)
  assert np.abs(ours - plain).max() > 0.1


def test_mlp_and_layer_scale_are_pytorchs():
  parameters, ours = _random(layers.Mlp(7), TOKENS)
  first, second = (_linear(parameters[f"Dense_{index}"]) for index in range(2))
  np.testing.assert_allclose(ours, second(nn.functional.gelu(first(torch.tensor(TOKENS)))), atol=1e-5)
  parameters, ours = _random(layers.LayerScale(0.1), TOKENS)
  np.testing.assert_allclose(ours, TOKENS * parameters["scale"], atol=1e-6)
  begin = layers.LayerScale(0.1).init(jax.random.key(0), TOKENS)["params"]["scale"]
  np.testing.assert_array_equal(begin, np.full(12, 0.1, np.float32))


def test_layer_norm_is_pytorchs_far_from_0_too():
  x = 1000 + TOKENS
  parameters, ours = _random(layers.LayerNorm(), x)
  scale, bias = (torch.tensor(parameters[name]) for name in ("scale", "bias"))
  theirs = nn.functional.layer_norm(torch.tensor(x), (12,), scale, bias, eps=1e-6)
  np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("layer", [layers.SelfAttention(3, jnp.bfloat16), layers.Mlp(7, jnp.bfloat16)])
def test_they_compute_in_their_type_and_keep_parameters_in_float32(layer):
  x = jnp.asarray(TOKENS, jnp.bfloat16)
  variables = layer.init(jax.random.key(0), x)
  assert layer.apply(variables, x).dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
