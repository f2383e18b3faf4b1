"""PGD-10 on the same weights and images: ours, torchattacks (PyTorch, channels_last) and Foolbox on its JAX backend.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.attack_speed --models cnn resnet18 --output attack_speed.json

Image-steps a second: images times steps over the median time of a call. Float32 on CPU. Before anything is timed, ours
and PyTorch's logits are compared.
"""

import functools

import foolbox
import jax
import numpy as np
import torch
import torchattacks

from benchmarks import common, torch_models
from lrat_jax import attacks, sharding

EPSILON, STEP_SIZE, NUM_STEPS = 8 / 255, 2 / 255, 10


def _sides(name: str, mesh):
  model, variables, images, labels, keys = common.classifier(name, mesh)
  pgd = functools.partial(attacks.pgd, epsilon=EPSILON, step_size=STEP_SIZE, num_steps=NUM_STEPS)
  ours = common.over_devices(
    lambda variables, keys, x, y: pgd(keys, functools.partial(model.apply, variables), x, y).images, mesh, 3
  )
  twin = torch_models.Classifier(variables).eval().to(memory_format=torch.channels_last)
  torch_images, torch_labels = torch_models.to_torch(images), torch.tensor(np.array(labels)).long()
  expected = jax.jit(model.apply)(variables, images)
  np.testing.assert_allclose(twin(torch_images).detach().numpy(), expected, atol=1e-3 * float(abs(expected).max()))
  peer = torchattacks.PGD(twin, eps=EPSILON, alpha=STEP_SIZE, steps=NUM_STEPS, random_start=True)
  # Foolbox calls the model from Python; jitting the model itself is what its users do.
  on_one = jax.device_put((variables, images, labels), jax.devices()[0])
  apply = jax.jit(functools.partial(model.apply, on_one[0]))
  foolbox_model = foolbox.JAXModel(apply, bounds=(0, 1), data_format="channels_last")
  foolbox_attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=NUM_STEPS)
  return len(images), {
    "ours": lambda: ours(variables, keys, images, labels),
    "torchattacks": lambda: peer(torch_images, torch_labels),
    "Foolbox JAX": lambda: foolbox_attack.run(foolbox_model, on_one[1], on_one[2], epsilon=EPSILON),
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
    for side, time in seconds.items():
      rate = batch * NUM_STEPS / time
      rows.append(
        {"model": name, "batch": batch, "side": side, "image-steps/s": rate, "times as long": time / seconds["ours"]}
      )
  common.report(f"PGD-{NUM_STEPS} on {mesh.size} device(s)", rows, arguments.output)


if __name__ == "__main__":
  main()
