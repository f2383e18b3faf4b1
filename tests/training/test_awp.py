"""Adversarial weight perturbation: the closed form, compared with the paper's proxy step."""

import jax
import jax.numpy as jnp
import numpy as np

from lrat_jax.training import awp

PARAMS = {"dense": {"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "bias": jnp.array([1.0, 2.0])}}
GRADIENTS = {"dense": {"kernel": jnp.array([[0.0, 6.0], [8.0, 0.0]]), "bias": jnp.array([1.0, 1.0])}}


def test_each_kernel_moves_up_its_gradient_by_gamma_times_its_own_length():
  moved = awp.perturbed(PARAMS, GRADIENTS, 0.1)
  np.testing.assert_allclose(moved["dense"]["kernel"], [[3.0, 0.3], [0.4, 4.0]], rtol=1e-6)  # |w| = 5, g / |g| = .6, .8
  np.testing.assert_array_equal(moved["dense"]["bias"], PARAMS["dense"]["bias"])


def test_it_is_the_papers_proxy_step_rescaled():
  proxy = jax.tree.map(lambda w, g: w + 0.01 * g, PARAMS, GRADIENTS)  # one SGD step up the loss
  step = proxy["dense"]["kernel"] - PARAMS["dense"]["kernel"]
  kernel = PARAMS["dense"]["kernel"]
  expected = kernel + 0.02 * np.linalg.norm(kernel) / (np.linalg.norm(step) + 1e-20) * step
  np.testing.assert_allclose(awp.perturbed(PARAMS, GRADIENTS, 0.02)["dense"]["kernel"], expected, rtol=1e-5)


def test_no_gradient_is_no_move():
  still = awp.perturbed(PARAMS, jax.tree.map(jnp.zeros_like, GRADIENTS), 0.1)
  np.testing.assert_array_equal(still["dense"]["kernel"], PARAMS["dense"]["kernel"])
