"""PGD-10 on the same weights and images: ours, torchattacks (PyTorch, channels_last) and Foolbox on its JAX backend.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.attack_speed --model resnet18 --output attack_speed.json

Image-steps per second are images times steps, divided by the median time of a call. Each side runs in its own process,
and the sides take turns. A "plain model" is the network with `lax`'s convolutions, as in a user's own network; "as
written" keeps these in our attack (`attacks.as_written`). Float32 on CPU. Our logits and PyTorch's are compared before
anything is timed. Foolbox's JAX backend calls the model from Python: eagerly, as its users do, or jitted.
"""

import functools

import jax
import numpy as np

from benchmarks import common
from lrat_jax import attacks
from lrat_jax.core import sharding

EPSILON, STEP_SIZE, NUM_STEPS = 8 / 255, 2 / 255, 10


def _ours(name: str, change=lambda apply: apply):
  mesh = common.make_mesh(name)
  model, variables, images, labels, keys = common.classifier(name, mesh)
  pgd = functools.partial(attacks.pgd, epsilon=EPSILON, step_size=STEP_SIZE, num_steps=NUM_STEPS)
  pgd = common.as_in_training(name, pgd)
  ours = common.over_devices(
    lambda variables, keys, x, y: pgd(keys, functools.partial(change(model.apply), variables), x, y).images, mesh, 3
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


def _left_as_written(apply):
  return attacks.as_written(common.with_plain_convolutions(apply))


def _foolbox(name: str, jitted: bool, change=lambda apply: apply):
  import foolbox

  model, variables, images, labels, _ = common.classifier(name, sharding.make_mesh())
  attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=NUM_STEPS)
  apply = functools.partial(change(model.apply), variables)
  wrapped = foolbox.JAXModel(jax.jit(apply) if jitted else apply, bounds=(0, 1), data_format="channels_last")
  return lambda: attack.run(wrapped, images, labels, epsilon=EPSILON)


def main() -> None:
  options = common.parser(__doc__, ("cnn", "resnet18"))
  arguments = options.parse_args()
  name = arguments.model
  makers = {"ours": functools.partial(_ours, name), "torchattacks": functools.partial(_torchattacks, name, False)}
  if name == "cnn":
    makers["torchattacks, flattened in memory order"] = functools.partial(_torchattacks, name, True)
  makers |= {
    "ours, plain model": functools.partial(_ours, name, common.with_plain_convolutions),
    "ours, plain model as written": functools.partial(_ours, name, _left_as_written),
    "Foolbox JAX": functools.partial(_foolbox, name, False, common.with_plain_convolutions),
    "Foolbox JAX, model jitted": functools.partial(_foolbox, name, True, common.with_plain_convolutions),
    "Foolbox JAX, our model jitted": functools.partial(_foolbox, name, True),
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
