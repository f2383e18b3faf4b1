"""The estimate of a step: operations and bytes, against known counts, and the time of sums, against its formula."""

import jax
import pytest

from benchmarks import scaling_on_paper as paper
from lrat_jax import models

POD = paper.Pod("TPU v5 lite", chips=4, links=10.0, network=2.0)


def test_the_gradient_is_all_parameters_and_operations_are_an_images():
  step = paper.count("cnn_4", (8, 8, 3))
  model = models.create("cnn_4", 10, mean=(0.0,), std=(1.0,))
  params = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"))["params"]
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert step.gradient == 4 * count and 8 * count <= step.state < 8 * count + 1000  # parameters and momentum
  first = 2 * 27 * 4 * 8 * 8  # operations of the first convolution's forward pass on one image
  assert step.flops > 10 * 2 * first  # ten steps, each with a backward pass


@pytest.mark.parametrize(
  ("chips", "seconds"),
  [(1, 0.0), (2, 2 * 40 / 2 / 10), (4, 2 * 40 * 3 / 4 / 10), (8, 2 * 40 * 3 / 4 / 10 + 2 * (40 / 4) / 2 / 2)],
)
def test_a_sum_goes_around_a_pod_and_then_between_pods(chips, seconds):
  assert paper.summing(40, POD, chips) == pytest.approx(seconds)


def test_work_is_shared_and_every_chip_has_an_image():
  step = paper.Step(flops=197e9, gradient=40, state=8_000_000)
  one, four, many = (paper.row(step, paper.PODS["v5e"], chips, 8) for chips in (1, 4, 16))
  assert one["computing ms"] == pytest.approx(8.0) and four["computing ms"] == pytest.approx(2.0)
  assert (one["images a chip"], four["images a chip"], many["images a chip"]) == (8, 2, 1)
  assert one["images/s"] == pytest.approx(1000.0) and one["all-reduce ms"] == 0.0
  assert one["shared by 8, MB"] == 8.0 and many["shared by 8, MB"] == 1.0
