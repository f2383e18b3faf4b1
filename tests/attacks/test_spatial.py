"""Rotations and translations: exact for quarter turns and whole pixels, else as in SciPy, and the worst of the grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from lrat_jax import attacks
from lrat_jax.attacks._spatial import transform


def test_quarter_turns_and_whole_shifts_are_exact(images):
  np.testing.assert_allclose(transform(images, 90.0, 0, 0), jnp.rot90(images, axes=(1, 2)), atol=1e-5)
  shifted = jnp.zeros_like(images).at[:, 2:, :-1].set(images[:, :-2, 1:])
  np.testing.assert_allclose(transform(images, 0.0, 2, -1), shifted, atol=1e-6)
  np.testing.assert_allclose(transform(images, 0.0, 0, 0), images, atol=1e-6)


def test_other_angles_equal_scipys():
  # A black frame, because at the edge of an image SciPy's "constant" mode cuts off and ours fades out.
  inside = jax.random.uniform(jax.random.key(0), (2, 5, 8, 3))
  images = jnp.pad(inside, ((0, 0), (3, 3), (3, 3), (0, 0)))
  for angle in (17.0, -30.0):
    expected = ndimage.rotate(np.asarray(images), angle, axes=(1, 2), reshape=False, order=1)
    np.testing.assert_allclose(transform(images, angle, 0, 0), expected, atol=1e-4)


def test_the_one_transformation_that_fools_is_found(keys):
  images = jnp.zeros((16, 9, 9, 1)).at[:, 4, 4].set(1.0)
  logits_fn = lambda x: jnp.stack([0.5 + 0 * x[:, 0, 0, 0], x[:, 6, 3, 0]], axis=1)
  labels = jnp.zeros(16, int)
  run = jax.jit(lambda images: attacks.spatial(keys, logits_fn, images, labels, max_translation=2, num_rotations=1))
  result = run(images)
  np.testing.assert_allclose(result.images[:, 6, 3], 1.0, atol=1e-5)
  # Shifts (down, right) run over -2..2 each, the second one fastest; (2, -1) comes after 4 * 5 + 1 others.
  np.testing.assert_array_equal(result.surviving_steps, 21)
  np.testing.assert_array_equal(run(0 * images).surviving_steps, 25)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"max_rotation": 181}, r"max_rotation=181 is outside \[0, 180\]"),
    ({"max_translation": -1}, "max_translation=-1 is outside"),
    ({"max_translation": 1e300}, r"max_translation=1e\+300 is outside \[0, 8\]"),
    ({"num_translations": 10**4}, r"num_rotations \* num_translations \*\* 2=3100000000 must be an integer"),
    ({"num_rotations": 0}, "num_rotations=0 must be an integer from 1"),
    ({"num_translations": 1.5}, "num_translations=1.5 must be an integer from 1"),
  ],
)
def test_bad_arguments_are_named(change, message, keys, images, labels, linear_logits):
  with pytest.raises(ValueError, match=message):
    attacks.spatial(keys, linear_logits, images, labels, **change)
