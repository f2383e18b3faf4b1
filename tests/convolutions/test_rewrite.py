"""Any model with its convolutions replaced: equal values and gradients, and the same program on TPU."""

import equinox
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.tree_util import Partial

from lrat_jax import attacks, models
from lrat_jax.convolutions import rewrite

KERNEL = jax.random.normal(jax.random.key(0), (3, 3, 32, 32)) / 17
IMAGES = jax.random.normal(jax.random.key(1), (2, 7, 6, 32))


def conv(x, kernel=KERNEL, **options):
  return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def _channels_first(x):
  return lax.conv_general_dilated(x.transpose(0, 3, 1, 2), KERNEL.transpose(3, 2, 0, 1), (2, 1), [(1, 1), (0, 2)])


def _batch_last(x):
  return lax.conv_general_dilated(
    x.transpose(1, 2, 3, 0), KERNEL, (1, 1), "SAME", dimension_numbers=("HWCN", "HWIO", "CNHW")
  )


def _checkpointed(policy):
  return jax.checkpoint(lambda x: conv(jnp.sin(conv(x))), policy=policy)


def _of_haiku(function):
  transformed = haiku.without_apply_rng(haiku.transform(function))
  return Partial(transformed.apply, transformed.init(jax.random.key(0), IMAGES))


OWN = models.create("resnet18_4", 3)
OWN_WEIGHTS = OWN.init(jax.random.key(0), IMAGES[..., :3])
REPLACED = {
  "plain": conv,
  "channels first": _channels_first,
  "batch last": _batch_last,
  "jit in jit": lambda x: jax.jit(lambda x: jax.jit(conv)(jax.nn.relu(conv(x))))(x),
  "scan": lambda x: lax.scan(lambda x, kernel: (conv(x, kernel), None), x, jnp.stack([KERNEL, 2 * KERNEL]))[0],
  "fori_loop": lambda x: lax.fori_loop(0, 2, lambda _, x: conv(x), x),  # a scan, because its bounds are known
  "while": lambda x: lax.while_loop(lambda at: at[0] < 2, lambda at: (at[0] + 1, conv(at[1])), (0, x))[1],
  "cond": lambda x: lax.cond(x.sum() > 0, conv, lambda x: 2 * conv(x), x),
  "remat": _checkpointed(None),
  "remat with a policy": _checkpointed(jax.checkpoint_policies.dots_saveable),
  "vmap": jax.vmap(lambda x: conv(x[None])[0]),
  "gradient": jax.grad(lambda x: jnp.sum(conv(x) ** 2)),
  "Linen": Partial(linen.Conv(8, (5, 5)).apply, linen.Conv(8, (5, 5)).init(jax.random.key(0), IMAGES)),
  "NNX": nnx.Conv(32, 8, (3, 3), rngs=nnx.Rngs(0)),
  "Haiku": _of_haiku(lambda x: haiku.Conv2D(8, 3)(x)),
  "Equinox": lambda x: jax.vmap(equinox.nn.Conv2d(32, 8, 3, key=jax.random.key(0)))(x.transpose(0, 3, 1, 2)),
}
# Models whose convolutions have strides or few channels: only their gradients are computed in another way.
FORWARD_AS_THEY_ARE = ("channels first", "Linen", "NNX", "Haiku", "Equinox")
KEPT = {
  "dilation": lambda x: conv(x, rhs_dilation=(2, 2)),
  "groups": lambda x: conv(x, KERNEL[:, :, :1], feature_group_count=32),
  "one dimension": lambda x: lax.conv_general_dilated(
    x[:, 0], KERNEL[0], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
  ),
  "negative padding": lambda x: lax.conv_general_dilated(
    x, KERNEL, (1, 1), [(-1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
  ),
  "bfloat16": lambda x: conv(x.astype(jnp.bfloat16), KERNEL.astype(jnp.bfloat16)),
  "no convolution": lambda x: jnp.sin(x),
  "chosen by platform": lambda x: lax.platform_dependent(x, cpu=conv, default=lambda x: 2 * conv(x)),
  "our own": lambda x: OWN.apply(OWN_WEIGHTS, x[..., :3]),
  "as written": rewrite.as_written(conv),
  "as written, of a Partial": rewrite.as_written(Partial(lambda kernel, x: conv(x, kernel), KERNEL)),
}


def _on(platform, function):
  return jax.jit(function).trace(IMAGES).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLACED)
def test_values_and_gradients_equal_the_models(name):
  model, ours = REPLACED[name], rewrite.rewritten(REPLACED[name])
  expected = jax.jit(model)(IMAGES)
  np.testing.assert_allclose(jax.jit(ours)(IMAGES), expected, atol=3e-5 * float(jnp.abs(expected).max()))
  if name == "while":
    return  # JAX has no reverse-mode gradient of it
  gradients = [jax.jit(jax.grad(lambda x, f=f: jnp.sin(f(x)).sum()))(IMAGES) for f in (ours, model)]
  np.testing.assert_allclose(*gradients, atol=5e-4 * float(jnp.abs(gradients[1]).max()))


@pytest.mark.parametrize("name", REPLACED)
def test_convolutions_are_replaced_on_cpu_alone(name):
  model, ours = REPLACED[name], rewrite.rewritten(REPLACED[name])
  text = _on("cpu", ours)
  assert "stablehlo.convolution" not in text or name in FORWARD_AS_THEY_ARE
  count = lambda function: _on("tpu", function).count("stablehlo.convolution")
  assert count(ours) == count(model)


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_replaced_is_the_same_program(name):
  model, ours = KEPT[name], rewrite.rewritten(KEPT[name])
  assert _on("cpu", ours).split("{", 1)[1] == _on("cpu", model).split("{", 1)[1]


def test_rules_of_differentiation_stay_as_they_were_written():
  @jax.custom_vjp
  def straight_through(x):
    return jnp.round(conv(x))

  straight_through.defvjp(lambda x: (straight_through(x), None), lambda _, g: (7 * g,))
  gradient = jax.grad(lambda x: rewrite.rewritten(straight_through)(x).sum())(IMAGES)
  np.testing.assert_array_equal(gradient, 7.0)


def test_what_a_model_returns_keeps_its_structure():
  model = lambda x: {"logits": conv(x), "few": (x.sum(), None)}
  found, expected = rewrite.rewritten(model)(IMAGES), model(IMAGES)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


def test_an_attack_on_anybodys_model_has_no_plain_convolution_in_its_loop():
  dense = jax.random.normal(jax.random.key(2), (7 * 6 * 32, 3))
  model = lambda x: conv(jnp.tile(x, 32)).reshape(len(x), -1) @ dense
  images, labels = jax.random.uniform(jax.random.key(3), (2, 7, 6, 1)), jnp.array([0, 2])
  attack = lambda model: (
    lambda x: attacks.pgd(jax.random.key(0), model, x, labels, epsilon=0.1, step_size=0.05, num_steps=2).images
  )
  text = lambda model: jax.jit(attack(model)).lower(images).as_text()
  assert "stablehlo.convolution" not in text(model)
  assert text(rewrite.as_written(model)).count("stablehlo.convolution") > 0


def test_what_convolutions_return_and_hold_is_counted_once():
  two = lambda x: jax.jit(conv)(conv(x))
  expected = (2 * IMAGES.size, 2 * KERNEL.size)
  assert rewrite.sizes(two, IMAGES) == rewrite.sizes(rewrite.rewritten(two), IMAGES) == expected
  assert rewrite.sizes(jnp.sin, IMAGES) == (0, 0)
  own = Partial(OWN.apply, OWN_WEIGHTS)
  one = rewrite.sizes(own, IMAGES[:1, ..., :3])
  assert rewrite.sizes(own, IMAGES[..., :3]) == (2 * one[0], one[1]) and min(one) > 1000
