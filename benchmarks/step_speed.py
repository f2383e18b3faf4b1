"""The time of an LRAT train step, relative to the sum of its gradients and to the same step in PyTorch.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.step_speed --model resnet18 --output step_speed.json

One variant in the pair, PGD-10 in eval mode, one forward pass in train mode over natural and adversarial images, local
weights, SGD with momentum and weight decay, on images of random pixels. "gradients": the attack's ten input gradients,
as they run inside a loop, and the parameters' gradient over both images, as separate programs. Each side runs in its
own process, and the sides take turns.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from lrat_jax import attacks
from lrat_jax.attacks import losses
from lrat_jax.core import sharding

EPSILON, STEP_SIZE, NUM_STEPS = 8 / 255, 2 / 255, 10
SLOPE, BIAS, MINIMUM_NATURAL = 5.0, -1.0, 0.1
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4


def _experiment(name: str):
  experiment = common.lrat_experiment(name, common.make_mesh(name))
  return experiment, *common.lrat_step(experiment)[1:]


def _our_step(name: str):
  return _experiment(name)[1]


def _input_gradients(name: str):
  experiment, _, variables, batch = _experiment(name)
  model, mesh = experiment.model, experiment.mesh
  keys = jax.device_put(
    jax.random.split(jax.random.key(0), len(batch["labels"])), jax.sharding.NamedSharding(mesh, sharding.BATCHED)
  )

  pgd = functools.partial(attacks.pgd, epsilon=EPSILON, step_size=STEP_SIZE, num_steps=NUM_STEPS, random_start="none")
  pgd = common.as_in_training(name, pgd)

  def attack(variables, keys, x, y):
    return pgd(keys, functools.partial(model.apply, variables), x, y).images

  attack = common.over_devices(attack, mesh, 3)
  return lambda: attack(variables, keys, batch["images"], batch["labels"])


def _parameter_gradient(name: str):
  experiment, _, variables, batch = _experiment(name)
  model = experiment.model

  def of_parameters(variables, x, y):
    variables = jax.lax.pcast(variables, sharding.AXIS, to="varying")

    def loss(params):
      inputs = jnp.concatenate([x, x])
      logits = model.apply({**variables, "params": params}, inputs, train=True, mutable=["batch_stats"])[0]
      return jnp.mean(losses.cross_entropy(logits, jnp.concatenate([y, y])))

    return jax.tree.map(lambda gradient: gradient[None], jax.grad(loss)(variables["params"]))

  of_parameters = common.over_devices(of_parameters, experiment.mesh, 2)
  return lambda: of_parameters(variables, batch["images"], batch["labels"])


def torch_lrat_loss(natural_logits, logits, labels):
  """The LRAT loss of pairs with one variant, in PyTorch: logits [batch, classes] of both members, labels [batch]."""
  import torch
  import torch.nn.functional as F

  with torch.no_grad():
    p = logits.softmax(1)
    true = F.one_hot(labels, common.NUM_CLASSES).bool()
    vulnerability = p.masked_fill(true, -1).amax(1) - p[true]
    weight = (1 + torch.tanh(SLOPE * (vulnerability - BIAS))) / 2
    natural_weight = (1 - weight).clamp(min=MINIMUM_NATURAL)
  loss = natural_weight * F.cross_entropy(natural_logits, labels, reduction="none")
  return (loss + weight * F.cross_entropy(logits, labels, reduction="none")).mean()


def _torch_step(name: str):
  """The same step in PyTorch as its users write it: channels_last, eager."""
  import torch
  import torch.nn.functional as F

  from benchmarks import torch_models

  ours, variables, images, labels, _ = common.classifier(name, sharding.make_mesh())
  model = torch_models.classifier(ours, variables).to(memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(model.parameters(), common.LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
  images, labels = torch_models.to_torch(images), torch.tensor(np.array(labels)).long()

  def attack():
    model.eval()
    x = (images + torch.empty_like(images).uniform_(-EPSILON, EPSILON)).clamp(0, 1)
    for _ in range(NUM_STEPS):
      x.requires_grad_()
      (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)
      x = x.detach() + STEP_SIZE * gradient.sign()
      x = torch.min(torch.max(x, images - EPSILON), images + EPSILON).clamp(0, 1)
    return x

  def take():
    adversarial = attack()
    model.train()
    natural_logits, logits = model(torch.cat([images, adversarial])).chunk(2)
    loss = torch_lrat_loss(natural_logits, logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

  return take


def main() -> None:
  arguments = common.parser(__doc__, ("cnn", "resnet18")).parse_args()
  name = arguments.model
  sides = {"step": _our_step, "inputs": _input_gradients, "parameters": _parameter_gradient, "PyTorch": _torch_step}
  makers = {side: functools.partial(make, name) for side, make in sides.items()}
  seconds = common.alternate_processes(makers, arguments.rounds)
  gradients = seconds["inputs"] + seconds["parameters"]
  row = {
    "model": name,
    "batch": common.SETTINGS[name][1],
    "our step ms": 1e3 * seconds["step"],
    "gradients ms": 1e3 * gradients,
    "step / gradients": seconds["step"] / gradients,
    "PyTorch step ms": 1e3 * seconds["PyTorch"],
    "ours is": seconds["PyTorch"] / seconds["step"],
  }
  common.report("One LRAT step", [row], arguments.output)


if __name__ == "__main__":
  main()
