"""The cost of the attack loop: K steps relative to K bare jitted input gradients; compile time and memory.

python -m benchmarks.loop_overhead --model resnet18 --output loop_overhead.json
"""

import functools
import time

import jax
import jax.numpy as jnp

from benchmarks import common
from lrat_jax import attacks
from lrat_jax.attacks import losses
from lrat_jax.core.text import counted


def _measure(name: str, mesh, num_steps: int, rounds: int) -> dict:
  model, variables, images, labels, keys = common.classifier(name, mesh)

  def gradient(variables, x, y):
    return jax.grad(lambda x: jnp.sum(losses.cross_entropy(model.apply(variables, x), y)))(x)

  pgd = functools.partial(attacks.pgd, epsilon=8 / 255, step_size=2 / 255, num_steps=num_steps)
  pgd = common.as_in_training(name, pgd)

  def attack(variables, keys, x, y):
    return pgd(keys, functools.partial(model.apply, variables), x, y).images

  bare = common.over_devices(gradient, mesh, 2)
  loop = common.over_devices(attack, mesh, 3)
  start = time.perf_counter()
  compiled = loop.lower(variables, keys, images, labels).compile()
  compile_seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  sides = {
    "loop": lambda: loop(variables, keys, images, labels),
    "bare": lambda: [bare(variables, images, labels) for _ in range(num_steps)],
  }
  seconds = common.alternate(sides, rounds)
  return {
    "model": name,
    "batch": len(images),
    "steps": num_steps,
    "gradient ms": 1e3 * seconds["bare"] / num_steps,
    "step ms": 1e3 * seconds["loop"] / num_steps,
    "overhead": seconds["loop"] / seconds["bare"],
    "compile s": compile_seconds,
    "peak MiB a device": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20,
  }


def main() -> None:
  options = common.parser(__doc__, list(common.SETTINGS))
  options.add_argument("--num-steps", type=int, default=10)
  arguments = options.parse_args()
  mesh = common.make_mesh(arguments.model)
  row = _measure(arguments.model, mesh, arguments.num_steps, arguments.rounds)
  common.report(f"The attack loop on {counted(mesh.size, 'device')}", [row], arguments.output)


if __name__ == "__main__":
  main()
