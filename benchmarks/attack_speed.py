"""PGD-10 on the same weights and images: ours, torchattacks (PyTorch, channels_last) and Foolbox on its JAX backend.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.attack_speed --models cnn resnet18 --output attack_speed.json

Image-steps a second: images times steps over the median time of a call. Float32 on CPU. Before anything is timed, ours
and PyTorch's logits are compared.
"""

import functools
from unittest import mock

import foolbox
import jax
import numpy as np
import torch
import torchattacks

from benchmarks import common, torch_models
from lrat_jax import attacks, sharding
from lrat_jax.models import conv

EPSILON, STEP_SIZE, NUM_STEPS = 8 / 255, 2 / 255, 10


def _sides(name: str, mesh):
  model, variables, images, labels, keys = common.classifier(name, mesh)
  pgd = functools.partial(attacks.pgd, epsilon=EPSILON, step_size=STEP_SIZE, num_steps=NUM_STEPS)
  ours = common.over_devices(
    lambda variables, keys, x, y: pgd(keys, functools.partial(model.apply, variables), x, y).images, mesh, 3
  )
  sides = {"ours": lambda: ours(variables, keys, images, labels)}
  expected = jax.jit(model.apply)(variables, images)
  sides |= _torchattacks_sides(name, variables, images, labels, expected)
  sides |= _foolbox_sides(*jax.device_put((variables, images, labels), jax.devices()[0]), model)
  return len(images), sides


def _torchattacks_sides(name: str, variables, images, labels, expected):
  torch_images, torch_labels = torch_models.to_torch(images), torch.tensor(np.array(labels)).long()
  sides = {}
  for in_memory_order in (False, True)[: 2 if name == "cnn" else 1]:
    twin = torch_models.Classifier(variables, in_memory_order=in_memory_order).eval()
    twin = twin.to(memory_format=torch.channels_last)
    atol = 1e-3 * float(abs(expected).max())
    np.testing.assert_allclose(twin(torch_images).detach().numpy(), expected, atol=atol)
    attack = torchattacks.PGD(twin, eps=EPSILON, alpha=STEP_SIZE, steps=NUM_STEPS, random_start=True)
    side = "torchattacks" + ", flattened in memory order" * in_memory_order
    sides[side] = functools.partial(attack, torch_images, torch_labels)
  return sides


def _foolbox_sides(variables, images, labels, model):
  """Foolbox calls the model from Python. As its users have it: plain layers, run eagerly; or jitted, plain or ours."""
  attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=NUM_STEPS)
  plain = lambda x, kernel, strides=(1, 1), padding=((1, 1), (1, 1)): jax.lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )

  def side(apply, convolution):
    def call():
      with mock.patch.object(conv, "conv2d", convolution):
        wrapped = foolbox.JAXModel(apply, bounds=(0, 1), data_format="channels_last")
        return attack.run(wrapped, images, labels, epsilon=EPSILON)

    return call

  jitted = lambda: jax.jit(lambda x: model.apply(variables, x))
  return {
    "Foolbox JAX": side(lambda x: model.apply(variables, x), plain),
    "Foolbox JAX, model jitted": side(jitted(), plain),
    "Foolbox JAX, our model jitted": side(jitted(), conv.conv2d),
  }


def main() -> None:
  options = common.parser(__doc__)
  options.add_argument("--models", nargs="+", default=["cnn", "resnet18"], choices=list(common.SETTINGS)[:2])
  arguments = options.parse_args()
  sharding.use_cpu_cores(*(common.SETTINGS[name][1] for name in arguments.models))
  mesh = sharding.make_mesh()
  rows = []
  for name in arguments.models:
    batch, sides = _sides(name, mesh)
    seconds = common.alternate(sides, arguments.rounds)
    for side, taken in seconds.items():
      row = {"model": name, "batch": batch, "side": side, "image-steps/s": batch * NUM_STEPS / taken}
      rows.append(row | {"times as long": taken / seconds["ours"]})
  common.report(f"PGD-{NUM_STEPS} on {mesh.size} device(s)", rows, arguments.output)


if __name__ == "__main__":
  main()
