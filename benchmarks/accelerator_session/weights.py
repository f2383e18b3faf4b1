"""Saves and loads trained weights in bfloat16, in files of limited size: NAME-1-of-2.safetensors in PyTorch's names."""

import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from lrat_jax.convert import exchange, torch_names, weight_files


def save(folder: Path, name: str, module, variables, most_bytes: int, **metadata) -> list[Path]:
  """Writes a model's tensors, floats as bfloat16, in order, in files of at most `most_bytes`."""
  tensors = torch_names.state_dict(module.network, jax.tree.map(np.asarray, dict(variables)))
  shards, size = [{}], 0
  for key, tensor in tensors.items():
    tensor = tensor.astype(ml_dtypes.bfloat16) if np.issubdtype(tensor.dtype, np.floating) else tensor
    if shards[-1] and size + tensor.nbytes > most_bytes:
      shards.append({})
      size = 0
    shards[-1][key] = tensor
    size += tensor.nbytes
  about = {"mean": list(module.mean), "std": list(module.std), "preprocessing": module.preprocessing}
  about |= {"activation": module.network.activation} | metadata
  paths = [folder / f"{name}-{index}-of-{len(shards)}.safetensors" for index in range(1, len(shards) + 1)]
  for path, shard in zip(paths, shards, strict=True):
    weight_files.write(path, shard, about)
  return paths


def names(folder: Path) -> list[str]:
  """The models of which all files are in a folder, in the order in which they were written."""
  found: dict[tuple[str, int], list[Path]] = {}
  for path in folder.glob("*.safetensors"):
    if match := re.fullmatch(r"(.+)-\d+-of-(\d+)", path.stem):
      found.setdefault((match[1], int(match[2])), []).append(path)
  whole = {name: min(p.stat().st_mtime for p in paths) for (name, count), paths in found.items() if len(paths) == count}
  return sorted(whole, key=whole.get)


def load(folder: Path, name: str, dtype: str = "float32") -> exchange.Model:
  """Loads the model of a name, with float32 weights."""
  (first,) = folder.glob(f"{name}-1-of-*.safetensors")
  return exchange.read(str(first)).build(dtype)
