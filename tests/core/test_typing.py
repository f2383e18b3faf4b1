"""The shapes in public signatures: calls and results of the right shape pass, others raise an error."""

import functools
import inspect

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from beartype import beartype
from beartype.door import is_bearable
from flax import linen as nn

from lrat_jax import attacks, models, objectives, reweighting
from lrat_jax.attacks import losses

KEYS, LABELS = jax.random.split(jax.random.key(0), 3), jnp.array([0, 1, 2])
IMAGES, LOGITS = jnp.full((3, 4, 4, 1), 0.5), jnp.eye(3, 5)
VARIANTS, PER_IMAGE = jnp.full((3, 2), 0.25), jnp.ones(3)
BALL = {"epsilon": 0.1}
ATTACKS = {
  attacks.fgsm: BALL,
  attacks.pgd: BALL | {"step_size": 0.1, "num_steps": 1},
  attacks.cw: BALL | {"step_size": 0.1, "num_steps": 1},
  attacks.apgd: BALL | {"num_steps": 1},
  attacks.fab: BALL | {"num_steps": 1, "target_rank": 1},
  attacks.square: BALL | {"num_queries": 1},
  attacks.carlini_wagner: {"num_steps": 1, "binary_search_steps": 1},
  attacks.ddn: {"num_steps": 1},
  attacks.fmn: {"num_steps": 1},
  attacks.deepfool: {"num_steps": 1},
  attacks.ead: {"num_steps": 1, "binary_search_steps": 1},
  attacks.hop_skip_jump: {"num_steps": 1, "initial_num_evals": 1},
  attacks.spsa: BALL | {"num_steps": 1, "num_samples": 1},
  attacks.msd: {"radii": {"linf": 0.1}, "step_sizes": {"linf": 0.1}, "num_steps": 1},
  attacks.spatial: {"num_rotations": 1, "num_translations": 1},
  attacks.corruption: {"kind": "contrast", "severity": 1},
  attacks.lpips: BALL | {"num_steps": 1, "features_fn": lambda images: [images]},
  attacks.unforeseen: {"kind": "stadv", "epsilon": 0.1, "num_steps": 1},
}
LOSSES = (losses.cross_entropy, losses.margin, losses.cw, losses.dlr, losses.is_correct)
# function -> (arguments of the right shapes, the name of one of them, a value of a wrong shape for it)
OTHERS = {
  losses.kl: ({"logits": LOGITS, "clean_logits": LOGITS}, "clean_logits", LOGITS[:2]),
  losses.dlr_targeted: ({"logits": LOGITS, "labels": LABELS, "targets": LABELS}, "targets", LABELS[:2]),
  losses.margin_targeted: ({"logits": LOGITS, "labels": LABELS, "targets": LABELS}, "targets", PER_IMAGE),
  attacks.example_keys: ({"key": KEYS[0], "example_indices": LABELS}, "key", KEYS),
  reweighting.vulnerability: ({"logits": LOGITS, "labels": LABELS}, "labels", LABELS[:2]),
  reweighting.local_weights: (
    {"vulnerabilities": VARIANTS, "total": 1.0, "minimum_natural": 0.1, "slope": 5.0, "bias": 0.0},
    "vulnerabilities",
    PER_IMAGE,
  ),
  reweighting.global_weights: (
    {"kind": "mail", "vulnerabilities": VARIANTS, "surviving_fractions": VARIANTS},
    "surviving_fractions",
    VARIANTS[:, :1],
  ),
  objectives.pair_losses: (
    {
      "objective": "trades",
      "natural_logits": LOGITS,
      "adversarial_logits": jnp.stack([LOGITS, LOGITS], axis=1),
      "labels": LABELS,
      "natural_weights": PER_IMAGE,
      "adversarial_weights": VARIANTS,
    },
    "adversarial_weights",
    VARIANTS[:, :1],
  ),
}


def logits_fn(images):
  return images.reshape(len(images), -1) @ jnp.linspace(-1, 1, 16 * 5).reshape(16, 5)


def checked(function):
  """The function, with every call checked against its annotations."""
  return jaxtyping.jaxtyped(typechecker=beartype)(function)


def named(function):
  return function.__name__


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_attacks_take_and_return_the_shapes_that_they_say(attack):
  call = functools.partial(checked(attack), **ATTACKS[attack])
  result = call(KEYS, logits_fn, IMAGES, LABELS)
  for field, annotation in attacks.AttackResult.__annotations__.items():
    assert is_bearable(getattr(result, field), annotation), field
  call(KEYS[0], logits_fn, IMAGES, LABELS)
  for wrong in ((KEYS, logits_fn, IMAGES[..., 0], LABELS), (KEYS, logits_fn, IMAGES, LABELS[:2])):
    with pytest.raises(jaxtyping.TypeCheckError):
      call(*wrong)


@pytest.mark.parametrize("loss", LOSSES, ids=named)
def test_losses_take_and_return_the_shapes_that_they_say(loss):
  assert checked(loss)(LOGITS, LABELS).shape == (3,)
  for wrong in ((LOGITS[0], LABELS), (LOGITS, LABELS[:2]), (LOGITS, PER_IMAGE)):
    with pytest.raises(jaxtyping.TypeCheckError):
      checked(loss)(*wrong)


@pytest.mark.parametrize("function", OTHERS, ids=named)
def test_the_method_takes_and_returns_the_shapes_that_it_says(function):
  arguments, name, wrong = OTHERS[function]
  checked(function)(**arguments)
  with pytest.raises(jaxtyping.TypeCheckError):
    checked(function)(**arguments | {name: wrong})


def test_autoattack_takes_and_returns_arrays_in_host_memory():
  images, labels = np.asarray(IMAGES), np.asarray(LABELS)
  wrong = np.argmin(logits_fn(IMAGES), axis=1)  # all misclassified: nothing to attack
  call = functools.partial(checked(attacks.autoattack), KEYS[0], logits_fn, epsilon=0.1)
  for given in ((images, wrong), (IMAGES, jnp.asarray(wrong))):
    report = call(*given)
    for field, annotation in attacks.AutoAttackReport.__annotations__.items():
      assert is_bearable(getattr(report, field), annotation), field
  with pytest.raises(jaxtyping.TypeCheckError):
    call(images[0], labels)


def test_a_model_takes_images_and_returns_logits():
  model = models.create("cnn_1", 5)
  variables = jax.eval_shape(model.init, KEYS[0], IMAGES)
  apply = functools.partial(jax.eval_shape, nn.apply(checked(models.Classifier.__call__), model), variables)
  assert apply(IMAGES).shape == (3, 5)
  with pytest.raises(jaxtyping.TypeCheckError):
    apply(IMAGES[..., 0])


def test_every_public_attack_says_its_shapes():
  functions = [found for name in attacks.__all__ if inspect.isfunction(found := getattr(attacks, name))]
  attacking = {function for function in functions if "logits_fn" in inspect.signature(function).parameters}
  assert attacking - {attacks.autoattack} == set(ATTACKS)
