"""Loads models from files with PyTorch's tensor names, as modules and variables, and saves them to such files.

  model = exchange.load("weights.pt")  # or .safetensors, a directory in Hugging Face's format, a run's workdir
  logits = model.logits_fn(images)
  exchange.save("weights.safetensors", model.module, model.variables)

Only numbers are read; no code in a file is run (`weight_files`).
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.tree_util import Partial

from lrat_jax import models
from lrat_jax.convert import identity, torch_names, weight_files
from lrat_jax.core import files, user_code
from lrat_jax.core.errors import ConfigError, WeightsError
from lrat_jax.evaluation import results
from lrat_jax.training import checkpoints
from lrat_jax.training.workdir import read_config

# Tensors that are ignored: counters of training; values that Swin computes from its window sizes; settings with which
# MeanSparse was fitted; and blocks that TRADES's WideResNet declares but never runs.
_UNUSED = re.compile(
  r"(?:.+\.)?(num_batches_tracked|n_averaged|relative_position_index|attn_mask|flag_update_statistics|batch_num"
  r"|(act\.0|drop_path\.1)\.(momentum|epsilon)|sub_block1\..+)"
)
# The second copy of the model that the robustness library stores for its attacker.
_ATTACKER = re.compile(r"(.*\.)?attacker\.")


class Model(NamedTuple):
  """A classifier and its weights: `module.apply(variables, images) -> logits`.

  Attributes:
    module: a `models.Classifier`, which includes the preprocessing of its input.
    variables: {"params"} or {"params", "batch_stats"}, float32.
  """

  module: models.Classifier
  variables: dict[str, Any]

  @property
  def logits_fn(self) -> Partial:
    """Images float [batch, h, w, c] in [0, 1] -> logits float32 [batch, classes]; a Partial of the variables."""
    return Partial(models.applied(self.module), self.variables)


class Stored(NamedTuple):
  """The contents of a file, read and recognised. Only `build` compares them with the tensors that the network needs.

  Attributes:
    source: its origin, for messages.
    recognised: the network that was recognised from the tensors.
    tensors: arrays by name, without a wrapper's prefix.
    preprocessing: of the network's input.
    notes: the findings about it, one line each.
    metadata: what a run, or RobustBench's entry, records about the training; empty otherwise.
  """

  source: str
  recognised: torch_names.Recognised
  tensors: dict[str, np.ndarray]
  preprocessing: identity.Preprocessing
  notes: list[str]
  metadata: dict[str, Any]

  def summary(self) -> str:
    """One line on the network and the preprocessing of its input."""
    found = self.recognised
    first = f"{self.source}: {found.name}, {found.num_classes} classes, {found.channels} channels."
    return " ".join([first, *self.notes])

  def content(self) -> str:
    """A digest of the tensors and of how they are used; it does not depend on the file's name."""
    inputs = self.preprocessing
    digest = hashlib.sha256(repr((inputs.mean, inputs.std)).encode())
    found = self.recognised
    if inputs.name != "mean_std" or found.activation not in ("auto", "relu") or found.others:
      digest.update(f"{inputs.name} {found.activation} {found.name}".encode())
    for name, array in sorted(self.tensors.items()):
      digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"

  def fitted(self, dtype: str = "float32") -> tuple[models.Classifier, dict[str, Any]]:
    """Returns the module, and its variables as NumPy arrays; raises as `build` does."""
    name, num_classes, channels = self.recognised.name, self.recognised.num_classes, self.recognised.channels
    inputs = self.preprocessing
    if len(inputs.mean) not in (1, channels):
      raise WeightsError(
        f"{self.source}: mean={inputs.mean} has {len(inputs.mean)} channels, but the network has {channels}."
      )
    options: dict[str, Any] = {"activation": self.recognised.activation, "mean": inputs.mean, "std": inputs.std}
    try:
      module = models.create(name, num_classes, dtype=dtype, preprocessing=inputs.name, **options)
      images = jax.ShapeDtypeStruct((1, *self.recognised.image_size, channels), jnp.float32)
      like = jax.eval_shape(lambda images: module.init(jax.random.key(0), images), images)
      return module, torch_names.variables(module.network, like, self.tensors)
    except torch_names.UnknownNetworkError as error:
      raise WeightsError(f"{self.source}: the tensors look like {name} but do not fit; {error}") from None
    except ValueError as error:
      raise WeightsError(f"{self.source}: {error}") from None

  def build(self, dtype: str = "float32") -> Model:
    """Builds the model, which computes in `dtype` ("float32" or "bfloat16") and returns float32 logits.

    Raises:
      WeightsError: tensors are missing, left over or of the wrong shape, or mean and std are not valid.
    """
    module, variables = self.fitted(dtype)
    return Model(module, jax.tree.map(jnp.asarray, variables))


def is_stored(name: str) -> bool:
  """Whether a name is that of a file or directory of weights, not "package.module:function"."""
  with contextlib.suppress(OSError):  # a name that no file can have
    return Path(name).exists() or (":" not in name and Path(name).suffix.lower() in weight_files.SUFFIXES)
  return False


def label(name: str) -> str:
  """A short form of `--model` that is valid as a folder's name: the last part of a path, without a file's suffix."""
  if not is_stored(name):
    return name.replace(":", ".")
  path = Path(name).absolute()
  return path.name if path.is_dir() else path.stem


def _store(
  source: str, tensors: dict[str, np.ndarray], metadata: Mapping[str, Any], said: identity.Said, details: dict[str, Any]
) -> Stored:
  unused = {name for name in tensors if _UNUSED.fullmatch(name)}
  if not all(map(_ATTACKER.match, tensors)):
    unused |= set(filter(_ATTACKER.match, tensors))
  kept = {name: array for name, array in tensors.items() if name not in unused}
  try:
    recognised = torch_names.recognise({name: array.shape for name, array in kept.items()})
    buffers = identity.take_buffers(kept, recognised.channels)
    settled = identity.settle(recognised, buffers, metadata, said)
  except (torch_names.UnknownNetworkError, WeightsError) as error:
    raise WeightsError(f"{source}: {error}") from None
  notes = settled.notes
  blocks = [name for name in unused if "sub_block1." in name]
  if blocks:
    notes.append(f"Left out: {len(blocks)} tensors of sub_block1, which no forward pass uses.")
  own = {name.removeprefix(recognised.prefix): array for name, array in kept.items()}
  own = {settled.recognised.renamed.get(name, name): array for name, array in own.items()}
  return Stored(source, settled.recognised, own, settled.preprocessing, notes, settled.metadata | details)


def best_checkpoint(workdir: Path) -> tuple[int, dict[str, Any]]:
  """(step, state as arrays) of a run's best checkpoint; the run is not changed."""
  with checkpoints.Checkpoints(workdir / "checkpoints", read_only=True) as saved:
    step = saved.best_step()
    if step is None:
      raise WeightsError(f"{workdir} contains no finished checkpoint; train there first.")
    if reason := checkpoints.damage(workdir / "checkpoints" / str(step)):
      raise WeightsError(
        f"{workdir}: the checkpoint of step {step} is damaged: {reason}; use --mode=evaluate there to move it aside."
      )
    return step, saved.read(step)


def _read_run(workdir: Path, said: identity.Said) -> Stored:
  """Reads a run's best checkpoint; the data set is not needed."""
  step, state = best_checkpoint(workdir)
  try:
    config = read_config(workdir / "config.json")
    variables = state["ema"] or state["variables"]
    layers = variables["params"]["network"]
    head = layers[max(name for name in layers if name.startswith("Dense_"))]
    about = dict(config["model"])
    name = about["name"]
    if user_code.is_name(name):  # and a module is not imported because a file names it
      raise WeightsError(f"{workdir}: its network is user code, {name!r}, for which no names in PyTorch are known.")
    network = models.create(name, len(head["bias"]), activation=about["activation"]).network
    tensors = torch_names.state_dict(network, variables)
    about |= {"architecture": name, "activation": network.activation}
    against = [f"{radius['norm']} {radius['text']}" for radius in results.radii(config["train_attacks"]).values()]
    details = {"name": config["name"], "step": step, "dtype": config["model"]["dtype"], "trained_against": against}
  except (files.CorruptFileError, ConfigError) as error:
    raise WeightsError(str(error)) from None
  except WeightsError:
    raise
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise WeightsError(
      f"{workdir}: config.json and the checkpoint do not match ({type(error).__name__}: {error})."
    ) from None
  return _store(str(workdir), tensors, about, said, details)


def _said(fields: Mapping[str, Any]) -> identity.Said:
  said = identity.Said(**fields)
  said.check()
  return said


def read(source: str | Path, *, key: str | None = None, **said: Any) -> Stored:
  """Reads a model's tensors and recognises their network. Uses no device.

  The networks of docs/models.md are recognised, in any width, with any number of classes, behind any prefix
  ("module."). What the tensors do not determine must come from the arguments, from the model's own buffers (mu, sigma,
  normalize.mean and so on), or from the metadata that `save` writes.

  Args:
    source: .pt, .pth, .safetensors, a directory with model.safetensors and config.json, or a run's workdir.
    key: the state_dict to read, if a .pt file has several.
    said: properties of the network (`identity.Said`), each optional. mean, std: of the images in [0, 1], per channel or
      one for all; preprocessing: in place of these, "none" (images in [0, 1] as they are), "per_image" or
      "minus_one_to_one", as in `models.create`; activation: as in `models.create`; architecture: the network's name, if
      the tensors fit several; robustbench: an entry of RobustBench that determines all of these, such as
      "Wang2023Better_WRN-28-10" or "cifar10/L2/Ding2020MMA".

  Raises:
    WeightsError: the file cannot be read, the network is not recognised, it contradicts an argument, or something that
      changes its logits is not known. The message is one line.
  """
  path = Path(os.path.expanduser(source))  # noqa: PTH111 (of a user that is not there it is left as it is)
  told = _said(said)
  if (path / "checkpoints").is_dir():
    return _read_run(path, told)
  tensors, metadata = weight_files.read(path, key)
  return _store(str(path), tensors, metadata, told, {})


def from_tensors(source: str, tensors: Mapping[str, np.ndarray], **said: Any) -> Stored:
  """Like `read`, for tensors in memory: a state_dict as NumPy arrays.

  Args:
    source: the name of the tensors in messages.
    said: as in `read`.
  """
  return _store(source, dict(tensors), {}, _said(said), {})


def load(source: str | Path, *, dtype: str = "float32", **options: Any) -> Model:
  """Loads a model from a file of weights, a directory or a run's workdir.

      model = lrat_jax.load_model("weights.pt", mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))
      lrat_jax.benchmark(model.logits_fn, images, labels, threat_model="Linf", epsilon=8 / 255)

  Args:
    source: .pt, .pth, .safetensors, a directory with model.safetensors and config.json, or a run's workdir.
    dtype: the type that the network computes in, "float32" or "bfloat16".
    options: what the file does not define, as in `read`: mean and std, or preprocessing; activation; architecture;
      robustbench; and key, which chooses one of several state_dicts.

  Returns:
    Model: (module, variables), and `logits_fn`, from images in [0, 1] to logits.

  Raises:
    WeightsError: the file cannot be read, the network is not recognised, it contradicts an option, or something that
      changes its logits is not known. The message is one line.
  """
  return read(source, **options).build(dtype)


def _name(network: nn.Module, recognised: torch_names.Recognised) -> str:
  """The name that makes this network in `models.create`, among those that its tensors fit."""
  for name in recognised.fitting:
    made = models.create(name, recognised.num_classes, activation=network.activation).network
    if made.clone(dtype=network.dtype, axis_name=network.axis_name) == network:
      return name
  return recognised.name


def save(destination: str | Path, module: models.Classifier, variables: Mapping[str, Any], **metadata: Any) -> None:
  """Writes a model in PyTorch's names, for its `load_state_dict(safetensors.torch.load_file(...))` and for our `load`.

  Args:
    destination: NAME.safetensors, or a directory for model.safetensors and config.json.
    module: from `models.create`. Its preprocessing and its activation are written as metadata, because PyTorch's
      networks take preprocessed images.
    variables: of the module.
    metadata: additional metadata, as plain data.

  Raises:
    OSError: a file cannot be written.
  """
  tensors = torch_names.state_dict(module.network, jax.tree.map(np.asarray, dict(variables)))
  recognised = torch_names.recognise({name: array.shape for name, array in tensors.items()})
  about = {
    "architecture": _name(module.network, recognised),
    "num_classes": recognised.num_classes,
    "channels": recognised.channels,
    "activation": module.network.activation,
    "preprocessing": module.preprocessing,
    "mean": list(module.mean),
    "std": list(module.std),
  }
  weight_files.write(Path(destination), tensors, about | metadata)
