"""Locally reweighted adversarial training (LRAT, arXiv:2106.15776), its baselines, and adversarial attacks in JAX.

    import lrat_jax

    result = lrat_jax.benchmark(logits_fn, images, labels, threat_model="Linf", epsilon=8 / 255)
    model = lrat_jax.load_model("runs/lrat_cifar10_seed0")
    lrat_jax.attacks, lrat_jax.models, lrat_jax.reweighting

Every name is imported on first use, so that `import lrat_jax` itself imports almost nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from lrat_jax import attacks, models, reweighting
  from lrat_jax.convert.exchange import load as load_model
  from lrat_jax.evaluation.benchmark import BenchmarkResult, benchmark

  __version__: str

__all__ = ["BenchmarkResult", "__version__", "attacks", "benchmark", "load_model", "models", "reweighting"]

# Public name -> its module, and its name there; None means the module itself.
_PUBLIC = {
  "attacks": ("lrat_jax.attacks", None),
  "models": ("lrat_jax.models", None),
  "reweighting": ("lrat_jax.reweighting", None),
  "BenchmarkResult": ("lrat_jax.evaluation.benchmark", "BenchmarkResult"),
  "benchmark": ("lrat_jax.evaluation.benchmark", "benchmark"),
  "load_model": ("lrat_jax.convert.exchange", "load"),
}


def __getattr__(name: str) -> Any:
  if name == "__version__":
    from lrat_jax.core import provenance

    return provenance.version()
  if name not in _PUBLIC:
    raise AttributeError(f"module 'lrat_jax' has no attribute {name!r}")
  module_name, attribute = _PUBLIC[name]
  module = importlib.import_module(module_name)
  return module if attribute is None else getattr(module, attribute)


def __dir__() -> list[str]:
  return sorted(__all__)
