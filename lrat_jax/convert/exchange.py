"""Models from other people and for them: from files in PyTorch's names to modules and variables here, and back.

  model = exchange.load("weights.pt")  # or .safetensors, a directory as Hugging Face's, a run's workdir
  logits = model.logits_fn(images)
  exchange.save("weights.safetensors", model.module, model.variables)

What is read is numbers; none of it runs (`weight_files`).
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.tree_util import Partial

from lrat_jax import models
from lrat_jax.convert import torch_names, weight_files
from lrat_jax.core import files, user_code
from lrat_jax.core.errors import ConfigError, WeightsError
from lrat_jax.evaluation import evaluate, results
from lrat_jax.training import checkpoints
from lrat_jax.training.workdir import read_config

# Counters that training keeps; what Swin computes from its windows' sizes; how MeanSparse was made; and blocks that
# TRADES's WideResNet declares and never runs.
_UNUSED = re.compile(
  r"(?:.+\.)?(num_batches_tracked|n_averaged|relative_position_index|attn_mask|flag_update_statistics|batch_num"
  r"|(act\.0|drop_path\.1)\.(momentum|epsilon)|sub_block1\..+)"
)
# A normalisation's buffers, wherever in the model it stands.
_MEANS, _STDS = re.compile(r"(?:.+\.)?(mean|mu|new_mean)"), re.compile(r"(?:.+\.)?(std|sigma|new_std)")
# What the robustness library keeps beside its model: the same once more, for its attacker.
_ATTACKER = re.compile(r"(.*\.)?attacker\.")


class Model(NamedTuple):
  """A classifier and its weights: `module.apply(variables, images) -> logits`.

  Attributes:
    module: a `models.Classifier`, with the normalisation of its input inside.
    variables: {"params"} or {"params", "batch_stats"}, float32.
  """

  module: models.Classifier
  variables: dict[str, Any]

  @property
  def logits_fn(self) -> Partial:
    """Images float [batch, h, w, c] in [0, 1] -> logits float32 [batch, classes], its parameters an argument."""
    return Partial(evaluate.apply_function(self.module), self.variables)


class Stored(NamedTuple):
  """What a file holds, read and recognised; not yet compared with what the network needs, which `build` does.

  Attributes:
    source: where it is from.
    recognised: the network that the tensors look like.
    tensors: arrays by name, without a wrapper's prefix.
    mean, std: per channel, or one for all.
    notes: what was found out or assumed about it, a line each.
    metadata: what a run says of its training; empty otherwise.
  """

  source: str
  recognised: torch_names.Recognised
  tensors: dict[str, np.ndarray]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  notes: list[str]
  metadata: dict[str, Any]

  def summary(self) -> str:
    """A line on what it is and how its input is taken."""
    found = self.recognised
    first = f"{self.source}: {found.name}, {found.num_classes} classes, {found.channels} channels."
    return " ".join([first, *self.notes])

  def content(self) -> str:
    """A digest of tensors and normalisation, whatever the file is called."""
    digest = hashlib.sha256(repr((self.mean, self.std)).encode())
    for name, array in sorted(self.tensors.items()):
      digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"

  def build(self, dtype: str = "float32") -> Model:
    """The model, with float32 logits whatever it computes in ("float32" or "bfloat16").

    Raises:
      WeightsError: tensors are missing, left over or of the wrong shape, or mean and std are no normalisation.
    """
    name, num_classes, channels = self.recognised.name, self.recognised.num_classes, self.recognised.channels
    if len(self.mean) not in (1, channels):
      raise WeightsError(f"{self.source}: mean={self.mean} is of {len(self.mean)} channels, the network of {channels}.")
    try:
      activation = self.recognised.activation or "auto"
      module = models.create(name, num_classes, activation=activation, dtype=dtype, mean=self.mean, std=self.std)
      images = jax.ShapeDtypeStruct((1, *self.recognised.image_size, channels), jnp.float32)
      like = jax.eval_shape(lambda images: module.init(jax.random.key(0), images), images)
      variables = torch_names.variables(module.network, like, self.tensors)
    except torch_names.UnknownNetworkError as error:
      raise WeightsError(f"{self.source}: the tensors look like {name} but do not fit; {error}") from None
    except ValueError as error:
      raise WeightsError(f"{self.source}: {error}") from None
    return Model(module, jax.tree.map(jnp.asarray, variables))


def is_stored(name: str) -> bool:
  """Whether a name means a file or directory of weights, and not "package.module:function"."""
  with contextlib.suppress(OSError):  # a name that no file can have
    return Path(name).exists() or (":" not in name and Path(name).suffix.lower() in weight_files.SUFFIXES)
  return False


def label(name: str) -> str:
  """A short name for what `--model` names, which can name a folder: of a path its last part without the ending."""
  if not is_stored(name):
    return name.replace(":", ".")
  path = Path(name).absolute()
  return path.name if path.is_dir() else path.stem


def _normalisation(tensors: dict[str, np.ndarray], channels: int) -> tuple[str, str] | None:
  """The names of the buffers that hold the one mean and the one standard deviation of the input."""
  names = [[name for name in tensors if pattern.fullmatch(name)] for pattern in (_MEANS, _STDS)]
  if [len(found) for found in names] != [1, 1]:
    return None
  (mean,), (std,) = names
  fits = tensors[mean].size == tensors[std].size in (1, channels)
  return (mean, std) if fits else None


def numbers(source: str, metadata: Mapping[str, Any], field: str) -> tuple[float, ...]:
  """Numbers from metadata: a list, or one as text."""
  value = metadata[field]
  try:
    numbers = json.loads(value) if isinstance(value, str) else value
    if isinstance(numbers, Sequence) and len(numbers):
      return tuple(float(number) for number in numbers)
  except (TypeError, ValueError, RecursionError):
    pass
  raise WeightsError(f"{source}: its metadata say {field}={value!r}, which is no list of numbers.")


def _choose(
  source: str,
  given: tuple[Sequence[float], Sequence[float]] | None,
  buffers: tuple[np.ndarray, np.ndarray] | None,
  metadata: Mapping[str, Any],
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
  """(mean, std, a line that says where they are from), the user's word before the file's."""
  if given is not None:
    mean, std, where = *(tuple(float(number) for number in side) for side in given), "as given"
  elif buffers is not None:
    mean, std, where = *(tuple(side.ravel().tolist()) for side in buffers), "from its own tensors"
  elif "mean" in metadata and "std" in metadata:
    mean, std, where = *(numbers(source, metadata, field) for field in ("mean", "std")), "from its metadata"
  else:
    raise WeightsError(
      f"{source} does not say how its network normalises images; give --mean and --std (in Python mean and std), or "
      "--mean=0 --std=1 where images in [0, 1] go in as they are."
    )
  shown = (" ".join(f"{number:.4g}" for number in side) for side in (mean, std))
  return mean, std, "Its input is normalised, mean {} and std {}, {}.".format(*shown, where)


def _settle(found: torch_names.Recognised, given: str | None, stored: Any) -> torch_names.Recognised:
  """The one among the networks that the same tensors fit, by the user's word or else by the file's."""
  fitting = found.fitting
  if given is not None and given not in fitting:
    raise WeightsError(f"its tensors are of {' or '.join(fitting)}, not of --architecture={given}.")
  told = given or stored
  if told not in fitting and found.others:
    raise WeightsError(
      "the file does not say which network it is of those that its tensors fit "
      f"(--architecture={' or '.join(fitting)}), and every logit depends on it."
    )
  return fitting.get(told, found)


def _store(
  source: str,
  tensors: dict[str, np.ndarray],
  metadata: Mapping[str, Any],
  given: Any,
  details: dict[str, Any],
  architecture: str | None = None,
) -> Stored:
  unused = {name for name in tensors if _UNUSED.fullmatch(name)}
  if not all(map(_ATTACKER.match, tensors)):
    unused |= set(filter(_ATTACKER.match, tensors))
  kept = {name: array for name, array in tensors.items() if name not in unused}
  try:
    recognised = torch_names.recognise({name: array.shape for name, array in kept.items()})
    settled = _settle(recognised, architecture, metadata.get("architecture"))
  except (torch_names.UnknownNetworkError, WeightsError) as error:
    raise WeightsError(f"{source}: {error}") from None
  settled = settled._replace(activation=metadata.get("activation") or settled.activation)
  names = _normalisation(kept, recognised.channels)
  buffers = None if names is None else (kept.pop(names[0]), kept.pop(names[1]))
  mean, std, note = _choose(source, given, buffers, metadata)
  notes = [note]
  blocks = [name for name in unused if "sub_block1." in name]
  if blocks:
    notes.append(f"Left out: {len(blocks)} tensors of sub_block1, which no forward pass uses.")
  own = {name.removeprefix(recognised.prefix): array for name, array in kept.items()}
  own = {settled.renamed.get(name, name): array for name, array in own.items()}
  return Stored(source, settled, own, mean, std, notes, details)


def _best_checkpoint(workdir: Path) -> tuple[int, dict[str, Any]]:
  """(step, state as arrays) of a run, which is left as it is."""
  with checkpoints.Checkpoints(workdir / "checkpoints", read_only=True) as saved:
    step = saved.best_step()
    if step is None:
      raise WeightsError(f"{workdir} holds no finished checkpoint; train there first.")
    if reason := checkpoints.damage(workdir / "checkpoints" / str(step)):
      raise WeightsError(
        f"{workdir}: the checkpoint of step {step} is damaged, {reason}; --mode=evaluate there sets it aside."
      )
    return step, saved.read(step)


def _read_run(workdir: Path, given: Any) -> Stored:
  """A run's best checkpoint, without its data set."""
  step, state = _best_checkpoint(workdir)
  try:
    config = read_config(workdir / "config.json")
    variables = state["ema"] or state["variables"]
    layers = variables["params"]["network"]
    head = layers[max(name for name in layers if name.startswith("Dense_"))]
    name = config["model"]["name"]
    if user_code.is_name(name):  # nor is a module imported because a file names it
      raise WeightsError(f"{workdir}: its network is code, {name!r}, and has no names in PyTorch.")
    network = models.create(name, len(head["bias"]), activation=config["model"]["activation"]).network
    tensors = torch_names.state_dict(network, variables)
    against = [f"{radius['norm']} {radius['text']}" for radius in results.radii(config["train_attacks"]).values()]
    details = {"name": config["name"], "step": step, "dtype": config["model"]["dtype"], "trained_against": against}
  except (files.CorruptFileError, ConfigError) as error:
    raise WeightsError(str(error)) from None
  except WeightsError:
    raise
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise WeightsError(f"{workdir}: config.json and checkpoint do not fit ({type(error).__name__}: {error}).") from None
  return _store(str(workdir), tensors, config["model"] | {"architecture": name}, given, details)


def read(
  source: str | Path,
  *,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
  key: str | None = None,
  architecture: str | None = None,
) -> Stored:
  """Reads a model's tensors and finds out which network they are of. Starts no device.

  Known are ResNet-18 and WideResNet as TRADES, RobustBench and Rice et al. name their layers, PreActResNet-18 as Rice
  et al., ConvNeXt, ViT, XCiT and Swin as timm, and the CNN of lrat_jax; in any width, with any number of
  classes, behind any prefix ("module.").

  Args:
    source: .pt, .pth, .safetensors, a directory with model.safetensors and config.json, or a run's workdir.
    mean, std: of the images in [0, 1], per channel or one for all; (0,) and (1,) where images go in as they are. If not
      given: the model's own buffers (mu, sigma, normalize.mean and so on), else the file's metadata.
    key: which of several state_dicts in a .pt file.
    architecture: the network's name, as `models.create` takes it, where the tensors fit several and the file's
      metadata do not say which: they are the same for XCiT on patches of 4 and of 16 pixels.

  Raises:
    WeightsError: it cannot be read, is no network known here or fits several, or nothing says how images are
      normalised; a line.
  """
  path = Path(os.path.expanduser(source))  # noqa: PTH111 (of a user that is not there it is left as it is)
  if (mean is None) != (std is None):
    raise WeightsError("mean and std go together; give both or neither.")
  given = None if mean is None else (mean, std)
  if (path / "checkpoints").is_dir():
    return _read_run(path, given)
  tensors, metadata = weight_files.read(path, key)
  return _store(str(path), tensors, metadata, given, {}, architecture)


def load(source: str | Path, *, dtype: str = "float32", **options: Any) -> Model:
  """The model that a file, directory or workdir holds.

  Args:
    dtype: what the network computes in, "float32" or "bfloat16".
    options: mean, std, key and architecture of `read`.

  Returns:
    (module, variables), and a `logits_fn` of both.

  Raises:
    WeightsError: as `read` and `Stored.build` do.
  """
  return read(source, **options).build(dtype)


def _name(network: nn.Module, recognised: torch_names.Recognised) -> str:
  """The name that makes a network, of those that its tensors fit."""
  for name in recognised.fitting:
    made = models.create(name, recognised.num_classes, activation=network.activation).network
    if made.clone(dtype=network.dtype, axis_name=network.axis_name) == network:
      return name
  return recognised.name


def save(destination: str | Path, module: models.Classifier, variables: Mapping[str, Any], **metadata: Any) -> None:
  """Writes a model in PyTorch's names, for `load_state_dict(safetensors.torch.load_file(...))` there and `load` here.

  Args:
    destination: NAME.safetensors, or a directory for model.safetensors and config.json.
    module: of `models.create`. Its mean and std become metadata: the networks of PyTorch take normalised images.
    variables: of the module.
    metadata: more to say of it, as plain data.

  Raises:
    OSError: it cannot be written.
  """
  tensors = torch_names.state_dict(module.network, jax.tree.map(np.asarray, dict(variables)))
  recognised = torch_names.recognise({name: array.shape for name, array in tensors.items()})
  about = {
    "architecture": _name(module.network, recognised),
    "num_classes": recognised.num_classes,
    "channels": recognised.channels,
    "activation": module.network.activation,
    "mean": list(module.mean),
    "std": list(module.std),
  }
  weight_files.write(Path(destination), tensors, about | metadata)
