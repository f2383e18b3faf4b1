"""The LRAT step over 1, 2, 4 and 8 devices: seconds at the same batch, and the collectives in the compiled program.

    python -m benchmarks.scaling --output scaling.json

On CPU the devices are virtual and share the cores: time decreases until there is one device per core, and should stay
constant beyond. "in loops" counts the collectives that the attack's loop would run at every step.
"""

import jax

from benchmarks import common
from lrat_jax.core import hlo, sharding


def _measure(name: str, num_devices: int, rounds: int) -> dict:
  compiled, step, _, batch = common.lrat_step(common.lrat_experiment(name, sharding.make_mesh(num_devices)))
  seconds = common.alternate({"step": step}, rounds)["step"]
  text = compiled.as_text()
  return {
    "model": name,
    "devices": num_devices,
    "step ms": 1e3 * seconds,
    "images/s": len(batch["labels"]) / seconds,
    "collectives": sum(hlo.collectives(text).values()),
    "in loops": sum(hlo.collectives(hlo.inside_loops(text)).values()),
  }


def main() -> None:
  options = common.parser(__doc__, ("cnn", "resnet18"))
  options.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, 8])
  arguments = options.parse_args()
  jax.config.update("jax_num_cpu_devices", max(arguments.devices))
  rows = [_measure(arguments.model, count, arguments.rounds) for count in arguments.devices]
  common.report("One LRAT step over devices", rows, arguments.output)


if __name__ == "__main__":
  main()
