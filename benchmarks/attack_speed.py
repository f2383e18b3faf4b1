"""PGD-10 on the same weights and images: ours, torchattacks (PyTorch, channels_last) and Foolbox on its JAX backend.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.attack_speed --model resnet18 --output attack_speed.json

Image-steps a second: images times steps over the median time of a call. Every side runs in a process of its own, one
after the other in turn. Float32 on CPU. Before anything is timed, ours and PyTorch's logits are compared. Foolbox's JAX
backend calls the model from Python: eagerly, as its users have it, or jitted.
"""

import functools
from unittest import mock

import jax
import numpy as np

from benchmarks import common
from lrat_jax import attacks
from lrat_jax.core import sharding
from lrat_jax.models import layers

EPSILON, STEP_SIZE, NUM_STEPS = 8 / 255, 2 / 255, 10


def _ours(name: str):
  mesh = common.make_mesh(name)
  model, variables, images, labels, keys = common.classifier(name, mesh)
  pgd = functools.partial(attacks.pgd, epsilon=EPSILON, step_size=STEP_SIZE, num_steps=NUM_STEPS)
  pgd = common.as_in_training(name, pgd)
  ours = common.over_devices(
    lambda variables, keys, x, y: pgd(keys, functools.partial(model.apply, variables), x, y).images, mesh, 3
  )
  return lambda: ours(variables, keys, images, labels)


def _torchattacks(name: str, in_memory_order: bool):
  import torch
  import torchattacks

  from benchmarks import torch_models

  model, variables, images, labels, _ = common.classifier(name, sharding.make_mesh())
  expected = jax.jit(model.apply)(variables, images)
  images, labels = torch_models.to_torch(images), torch.tensor(np.array(labels)).long()
  twin = torch_models.classifier(model, variables, in_memory_order).eval()
  twin = twin.to(memory_format=torch.channels_last)
  np.testing.assert_allclose(twin(images).detach().numpy(), expected, atol=1e-3 * float(abs(expected).max()))
  attack = torchattacks.PGD(twin, eps=EPSILON, alpha=STEP_SIZE, steps=NUM_STEPS, random_start=True)
  return functools.partial(attack, images, labels)


def _plain_convolution(x, kernel, strides=(1, 1), padding=((1, 1), (1, 1))):
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _foolbox(name: str, jitted: bool, convolution):
  import foolbox

  model, variables, images, labels, _ = common.classifier(name, sharding.make_mesh())
  attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=NUM_STEPS)
  apply = functools.partial(model.apply, variables)
  wrapped = foolbox.JAXModel(jax.jit(apply) if jitted else apply, bounds=(0, 1), data_format="channels_last")

  def call():
    with mock.patch.object(layers, "conv2d", convolution):
      return attack.run(wrapped, images, labels, epsilon=EPSILON)

  return call


def main() -> None:
  options = common.parser(__doc__, ("cnn", "resnet18"))
  arguments = options.parse_args()
  name = arguments.model
  makers = {"ours": functools.partial(_ours, name), "torchattacks": functools.partial(_torchattacks, name, False)}
  if name == "cnn":
    makers["torchattacks, flattened in memory order"] = functools.partial(_torchattacks, name, True)
  makers |= {
    "Foolbox JAX": functools.partial(_foolbox, name, False, _plain_convolution),
    "Foolbox JAX, model jitted": functools.partial(_foolbox, name, True, _plain_convolution),
    "Foolbox JAX, our model jitted": functools.partial(_foolbox, name, True, layers.conv2d),
  }
  seconds = common.alternate_processes(makers, arguments.rounds)
  batch = common.SETTINGS[name][1]
  rows = [
    {
      "model": name,
      "batch": batch,
      "side": side,
      "image-steps/s": batch * NUM_STEPS / taken,
      "times as long": taken / seconds["ours"],
    }
    for side, taken in seconds.items()
  ]
  common.report(f"PGD-{NUM_STEPS}", rows, arguments.output)


if __name__ == "__main__":
  main()
