"""Tensors by name in common file formats: PyTorch's .pt and .pth, safetensors, Hugging Face's directories.

Reading them runs no code: .pt files are loaded with PyTorch's `weights_only`, which makes only tensors and plain
containers, and safetensors and JSON contain nothing else. PyTorch is imported only to read a .pt file.
"""

import glob
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from lrat_jax.core import files
from lrat_jax.core.errors import WeightsError

SUFFIXES = (".pt", ".pth", ".th", ".tar", ".ckpt", ".safetensors")
# The types that NumPy's numbers, such as an accuracy beside the tensors, need in a file; none of them runs code.
_NUMPY_NUMBERS = [
  np.dtype, np.float64(0).__reduce__()[0], *(type(np.dtype(kind)) for kind in ("?", "i4", "i8", "f4", "f8")),
]  # fmt: skip
# The files in a directory in Hugging Face's format.
WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
# One of several files of a model, NAME-00001-of-00003.safetensors.
_PART = re.compile(r"(?P<name>.+)-\d+-of-(?P<count>\d+)")
# In older versions, `weights_only` could run code (CVE-2025-32434).
_OLDEST_TORCH = (2, 6)


def _unreadable(path: Path, error: Exception) -> WeightsError:
  reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
  return WeightsError(f"{path} cannot be read: {' '.join(reason.split())[:200]}.")


def _torch(path: Path) -> ModuleType:
  try:
    import torch
  except ImportError:
    raise WeightsError(
      f"{path} can be read only with PyTorch, which is not installed; install torch, or use a .safetensors file."
    ) from None
  if tuple(map(int, torch.__version__.split(".")[:2])) < _OLDEST_TORCH:
    raise WeightsError(
      f"{path} is read only with PyTorch 2.6 or newer, because older versions can run code in it; update torch."
    )
  return torch


def _state_dicts(
  content: Any, is_tensor: Callable[[Any], bool], name: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """The mappings from names to tensors in a file's containers, each with its path, such as "model" or "net.ema".

  Numbers and text beside tensors, such as an epoch, are ignored. So are mappings with a key that is not text, such as
  an optimiser's state.
  """
  if isinstance(content, list | tuple) and len(content) == 1:
    yield from _state_dicts(content[0], is_tensor, name)
  if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
    return
  tensors = {key: value for key, value in content.items() if is_tensor(value)}
  if any(tensor.ndim > 1 for tensor in tensors.values()) or (tensors and len(tensors) == len(content)):
    yield name, tensors
  for key, value in content.items():
    yield from _state_dicts(value, is_tensor, f"{name}.{key}" if name else key)


def _state_dict(path: Path, content: Any, key: str | None, is_tensor: Callable[[Any], bool]) -> Mapping[str, Any]:
  """The only mapping from names to tensors in a .pt file, at the top or nested, or the one called `key`."""
  found = dict(_state_dicts(content, is_tensor))
  if key is None and len(found) == 1:
    return next(iter(found.values()))
  if key in found:
    return found[key]
  if not found:
    what = f"{sorted(map(str, content))[:6]}" if isinstance(content, Mapping) else type(content).__name__
    raise WeightsError(f"{path} contains no state_dict, only {what}.")
  said = "several state_dicts; choose one with --key" if key is None else f"no state_dict under --key={key!r}; choose"
  raise WeightsError(f"{path} contains {said} from {sorted(found)}.")


def _read_torch(path: Path, key: str | None) -> dict[str, np.ndarray]:
  try:
    path.stat()  # before PyTorch is imported
  except OSError as error:
    raise _unreadable(path, error) from None
  torch = _torch(path)
  try:
    with path.open("rb") as file, torch.serialization.safe_globals(_NUMPY_NUMBERS):
      content = torch.load(file, map_location="cpu", weights_only=True)
  except OSError as error:
    raise _unreadable(path, error) from None
  except Exception as error:  # damaged files can raise almost any exception
    if found := re.search(r"GLOBAL (\S+)", str(error)):
      raise WeightsError(
        f"{path} contains a Python object, {found[1]}, which is not loaded because it could run code; if you trust "
        "the file, save only its state_dict: torch.save(model.state_dict(), NEW)."
      ) from None
    raise WeightsError(f"{path} is not a complete PyTorch file ({type(error).__name__}).") from None
  arrays = {}
  for name, tensor in _state_dict(path, content, key, lambda value: isinstance(value, torch.Tensor)).items():
    try:
      arrays[name] = tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype).numpy()
    except (TypeError, RuntimeError, NotImplementedError):  # sparse, quantised, without data
      raise WeightsError(f"{path}: {name} is not a plain tensor ({tensor.dtype}, {tensor.layout}).") from None
  return arrays


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
      metadata = file.metadata() or {}
  except (OSError, TypeError, ValueError, safetensors.SafetensorError) as error:
    raise _unreadable(path, error) from None
  is_float = lambda array: jnp.issubdtype(array.dtype, jnp.floating)
  return {name: array.astype(np.float32) if is_float(array) else array for name, array in arrays.items()}, metadata


def _read_parts(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """A file's tensors and metadata, together with the tensors of the other files of the same model in its folder.

  If another file has a tensor of the same name, the files are separate models, and only this file is read.
  """
  arrays, metadata = _read_safetensors(path)
  together = dict(arrays)
  if part := _PART.fullmatch(path.stem):
    others = path.parent.glob(f"{glob.escape(part['name'])}-*-of-{part['count']}{path.suffix}")
    for other in sorted(found for found in others if found != path and _PART.fullmatch(found.stem)):
      more, _ = _read_safetensors(other)
      if not together.keys().isdisjoint(more):
        return arrays, metadata
      together |= more
  return together, metadata


def _weights_in(folder: Path) -> Path:
  """The file of weights in a directory in Hugging Face's format, or the first of several."""
  parts = sorted(folder.glob(f"{Path(WEIGHTS).stem}-*-of-*.safetensors"))
  return folder / WEIGHTS if (folder / WEIGHTS).exists() or not parts else parts[0]


def read(path: Path, key: str | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Reads the tensors and the metadata of a file or directory.

  Args:
    path: .pt, .pth, .th, .tar, .ckpt, .safetensors, or a directory with model.safetensors and config.json. If a
      model is in several files, NAME-1-of-2.safetensors and so on, any of them.
    key: the state_dict to read, if a .pt file has several.

  Returns:
    Arrays by name, floats of any width as float32; and the metadata: for safetensors text by name, for a directory also
    the contents of its config.json, for .pt files nothing.

  Raises:
    WeightsError: the file is missing, damaged or of another kind, or contains something that is not a plain tensor.
  """
  if path.is_dir():
    arrays, metadata = _read_parts(_weights_in(path))
    try:
      return arrays, metadata | files.read_json(path / DESCRIPTION)
    except files.CorruptFileError as error:
      raise WeightsError(str(error)) from None
  suffix = path.suffix.lower()
  if suffix not in SUFFIXES:
    raise WeightsError(f"{path} must be a directory or have one of the suffixes {', '.join(SUFFIXES)}.")
  if suffix == ".safetensors":
    if key is not None:
      raise WeightsError(f"{path} contains only one set of tensors; --key={key!r} is only for .pt files.")
    return _read_parts(path)
  return _read_torch(path, key), {}


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
  """Writes a safetensors file, or for any other name a directory with model.safetensors and config.json.

  The metadata are text in the safetensors file (JSON, if a value is not text), and unchanged in config.json.

  Raises:
    OSError: a file cannot be written.
  """
  is_file = path.suffix.lower() == ".safetensors"
  if not is_file:
    path.mkdir(parents=True, exist_ok=True)
    with files.replacing(path / DESCRIPTION) as file:
      file.write((json.dumps(dict(metadata), indent=2) + "\n").encode())
  texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
  with files.replacing(path if is_file else path / WEIGHTS) as file:
    # Readers of safetensors require "pt" to accept the tensors as PyTorch's.
    file.write(safetensors.numpy.save(dict(tensors), {"format": "pt"} | texts))
