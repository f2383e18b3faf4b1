"""Models that are not plain functions: custom gradients, donated buffers, NNX in training mode, exported programs."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

import lrat_jax
from lrat_jax import attacks

WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)
OPTIONS = {
  "apgd": dict(epsilon=0.1, num_steps=2),
  "carlini_wagner": dict(num_steps=2, binary_search_steps=1),
  "ddn": dict(num_steps=2),
  "deepfool": dict(num_steps=2),
  "ead": dict(num_steps=2, binary_search_steps=1),
  "fab": dict(num_steps=2),
  "fmn": dict(num_steps=2),
  "fgsm": dict(epsilon=0.1),
  "pgd": dict(epsilon=0.1, step_size=0.1, num_steps=2),
  "hop_skip_jump": dict(num_steps=1, initial_num_evals=2),
  "spatial": {},
  "spsa": dict(epsilon=0.1, num_steps=1, num_samples=2),
  "square": dict(epsilon=0.1, num_queries=3),
}


@jax.custom_vjp
def _quantised(points, weights):
  return jnp.round(points * 16) / 16 @ weights


_quantised.defvjp(
  lambda points, weights: (_quantised(points, weights), (points, weights)),
  lambda kept, cotangent: (cotangent @ kept[1].T, kept[0].T @ cotangent),
)


def quantised(images):
  """A straight-through layer that takes its weights as an argument, as BPDA and quantised layers do."""
  return _quantised(images.reshape(len(images), -1), WEIGHTS)


@pytest.mark.slow
def test_custom_gradients_with_weights_are_evaluated_on_several_devices(images):
  """The rule also returns a gradient with respect to the weights, which differs between devices."""
  labels = jnp.argmax(quantised(images), axis=-1)
  options = {"epsilon": 0.02, "version": "apgd", "batch_size": 8}
  reports = [
    attacks.autoattack(jax.random.key(0), quantised, images, labels, devices=jax.devices()[:count], **options)
    for count in (1, 2)
  ]
  assert 0 < reports[0].robust_accuracy < 1
  np.testing.assert_array_equal(reports[0].robust, reports[1].robust)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_model_that_donates_its_images_leaves_the_callers_alone(images, labels, name):
  donating = jax.jit(lambda x: (x.reshape(16, 64) @ WEIGHTS).reshape(x.shape), donate_argnums=0)
  mine = jnp.array(images)
  result = getattr(attacks, name)(
    jax.random.key(0), lambda x: donating(x).reshape(16, 64), mine, labels, **OPTIONS[name]
  )
  assert not mine.is_deleted() and result.images.shape == mine.shape
  np.testing.assert_array_equal(mine, images)


def test_the_benchmark_of_a_model_that_donates_its_images(images, labels):
  donating = jax.jit(lambda x: (x.reshape(len(x), 64) @ WEIGHTS).reshape(x.shape), donate_argnums=0)
  plain = lambda x: x.reshape(len(x), 64) @ WEIGHTS
  found = [
    lrat_jax.benchmark(model, images, labels, threat_model="linf", epsilon=0.02, version="apgd").robust
    for model in (lambda x: donating(x).reshape(len(x), 64), plain)
  ]
  np.testing.assert_array_equal(*found)


class _Network(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.linear, self.dropout = nnx.Linear(64, 5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, images):
    return self.linear(self.dropout(images.reshape(len(images), -1)))


@pytest.mark.parametrize("name", OPTIONS)
def test_an_nnx_model_that_trains_is_told_to_stop(images, labels, name):
  model = _Network()
  with pytest.raises(ValueError, match=r"^logits_fn failed \(TraceContextError: .*model.eval\(\)"):
    jax.jit(lambda x: getattr(attacks, name)(jax.random.key(0), model, x, labels, **OPTIONS[name]).images)(images)
  model.eval()
  assert getattr(attacks, name)(jax.random.key(0), model, images, labels, **OPTIONS[name]).images.shape == images.shape


class _Linear(linen.Module):
  @linen.compact
  def __call__(self, images):
    return linen.Dense(5)(images.reshape(len(images), -1))


@pytest.mark.parametrize(
  ("model", "message"),
  [
    (_Linear(), r"^logits_fn failed \(CallCompactUnboundModuleError: .*module.apply\(variables, images\)"),
    (lambda x: np.asarray(x).reshape(len(x), 64) @ np.asarray(WEIGHTS), r"^logits_fn failed .*calls NumPy\)"),
    (torch.nn.Linear(64, 5), "^logits_fn is a PyTorch module.*lrat_jax.load_model"),
  ],
)
def test_what_is_no_jax_function_is_refused_with_what_to_give_instead(images, labels, model, message):
  with pytest.raises(ValueError, match=message):
    attacks.pgd(jax.random.key(0), model, images, labels, **OPTIONS["pgd"])
  with pytest.raises(ValueError, match=message):
    lrat_jax.benchmark(model, images, labels, threat_model="linf", epsilon=0.02)


def _exported(batch):
  linear = jax.jit(lambda x: jnp.einsum("bhwc,hwck->bk", x, WEIGHTS.reshape(8, 8, 1, 64)))
  shape = jax.export.symbolic_shape(f"{batch}, 8, 8, 1")
  stored = jax.export.export(linear)(jax.ShapeDtypeStruct(shape, jnp.float32)).serialize(vjp_order=1)
  return jax.export.deserialize(stored)


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["b", 16, 7])
def test_an_exported_program_is_asked_at_its_own_batch_size(images, labels, batch):
  program = _exported(batch)
  plain = lambda x: x.reshape(len(x), 64) @ WEIGHTS
  for model in (program.call, program):
    found = attacks.pgd(jax.random.key(0), model, images, labels, **OPTIONS["pgd"]).images
    np.testing.assert_allclose(
      found, attacks.pgd(jax.random.key(0), plain, images, labels, **OPTIONS["pgd"]).images, atol=1e-6
    )
  options = {"threat_model": "linf", "epsilon": 0.02, "version": "apgd", "num_sanity_examples": 0}
  np.testing.assert_array_equal(
    lrat_jax.benchmark(program.call, images, labels, **options).robust,
    lrat_jax.benchmark(plain, images, labels, **options).robust,
  )


def test_any_function_can_be_asked_at_one_batch_size(images):
  def seven(x):
    assert len(x) == 7
    return x.reshape(7, 64) @ WEIGHTS

  found = attacks.at_batch_size(seven, 7)(images)
  np.testing.assert_allclose(found, images.reshape(16, 64) @ WEIGHTS, rtol=1e-5)
