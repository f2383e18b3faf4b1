"""Classifiers by name, including the normalisation of their input: images in [0, 1] -> float32 logits."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.tree_util import Partial

from lrat_jax.core import user_code
from lrat_jax.core.typing import AxisName, FeaturesFn, Images, Logits, LogitsFn, Variables
from lrat_jax.models import convnext, swin, vit, wide_resnet, xcit
from lrat_jax.models.cnn import CNN
from lrat_jax.models.layers import ACTIVATIONS, FEATURES
from lrat_jax.models.preact_resnet import DMPreActResNet, PreActResNet, WongPreActResNet
from lrat_jax.models.resnet import BLOCKS, ResNet, TorchvisionResNet

DTYPES = ("float32", "bfloat16")
# How images in [0, 1] are preprocessed before the network.
PREPROCESSING = ("mean_std", "none", "per_image", "minus_one_to_one")
# The arguments of `create` that have the names of a configuration's fields.
OPTIONS = ("activation", "mean", "std", "preprocessing", "remat")
# The suffix in the name of a network with MeanSparse.
MEAN_SPARSE = "_mean_sparse"
# The number of input pixels whose activations fit into a CPU core's cache throughout the small network. Other networks
# become slower if only a few images are processed at once, because their kernels are read again each time.
_CNN_PIXELS_AT_ONCE = 8 * 28 * 28
# If more images than this would fit, all images are attacked at once: a step has hardly more of them anyway.
_FEW = 32
NAMES = (
  "cnn", "cnn_WIDTH", "resnet18", "resnet18_WIDTH", "preact_resnet18", "preact_resnet18_WIDTH",
  "dm_preact_resnet18", "wong_preact_resnet18", "resnet50", "imagenet_resnet50", "imagenet_wide_resnet50_2",
  *wide_resnet.NAMES, *convnext.NAMES, *swin.NAMES, *vit.NAMES, *xcit.NAMES,
  f"NAME{MEAN_SPARSE}",
)  # fmt: skip


def standardised(images: Images) -> Images:
  """Each image minus its mean and divided by its standard deviation, both over all its pixels and channels.

  As in MMA training (Ding et al., arXiv:1812.02637): for an image of N numbers, the variance is the sum of squares
  divided by N - 1, and the deviation is at least 1 / sqrt(N), so that a constant image becomes zeros.
  """
  wide = images.astype(jnp.promote_types(images.dtype, jnp.float32))
  axes, count = tuple(range(1, images.ndim)), images[0].size
  centred = wide - jnp.mean(wide, axis=axes, keepdims=True)
  variance = jnp.sum(centred**2, axis=axes, keepdims=True) / (count - 1)
  return (centred * jax.lax.rsqrt(jnp.maximum(variance, 1 / count))).astype(images.dtype)


class Classifier(nn.Module):
  """A network with the preprocessing of its input; logits are float32, whatever dtype the network computes in.

  `module.apply(variables, images, train=False) -> logits`: images float [batch, h, w, c] in [0, 1], logits float32
  [batch, classes].

  Attributes:
    mean, std: one for each channel or one for all; used only by the preprocessing "mean_std".
    preprocessing: one of PREPROCESSING, which `create` explains.
  """

  network: nn.Module
  mean: tuple[float, ...]
  std: tuple[float, ...]
  preprocessing: str = "mean_std"

  def __call__(self, images: Images, train: bool = False) -> Logits:
    return self.network(self._preprocessed(images), train).astype(jnp.float32)

  def _preprocessed(self, images: Images) -> Images:
    if self.preprocessing == "none":
      return images
    if self.preprocessing == "per_image":
      return standardised(images)
    if self.preprocessing == "minus_one_to_one":
      return 2 * images - 1
    return (images - jnp.asarray(self.mean, images.dtype)) / jnp.asarray(self.std, images.dtype)


def _cnn(match: re.Match, **options: Any) -> nn.Module:
  return CNN(width=int(match[1] or 32), **options)


def _preact_resnet(match: re.Match, **options: Any) -> nn.Module:
  family = {"": PreActResNet, "wong_": WongPreActResNet, "dm_": DMPreActResNet}[match[1]]
  return family(blocks=BLOCKS[match[2]], width=int(match[3] or 64), **options)


def _resnet(match: re.Match, **options: Any) -> nn.Module:
  family = TorchvisionResNet if match[1] else ResNet
  options |= {"blocks": BLOCKS[match[2]], "bottleneck": int(match[2]) >= 50, "width": int(match[3] or 64)}
  return family(**options)


def _imagenet_wide_resnet(match: re.Match, **options: Any) -> nn.Module:
  options |= {"blocks": BLOCKS[match[1]], "bottleneck": True, "widening": int(match[2]), "width": int(match[3] or 64)}
  return TorchvisionResNet(**options)


_CNN = r"cnn(?:_([1-9]\d{0,3}))?"
# A pattern of the names of each family, and the function that makes a network from a match.
_FAMILIES: dict[str, Callable[..., nn.Module]] = {
  _CNN: _cnn,
  r"(imagenet_)?resnet(18|34|50|101|152)(?:_([1-9]\d{0,3}))?": _resnet,
  r"(|wong_|dm_)preact_resnet(18|34)(?:_([1-9]\d{0,3}))?": _preact_resnet,
  wide_resnet.SPELLING: wide_resnet.from_name,
  r"imagenet_wide_resnet(50|101)_([1-9])(?:_([1-9]\d{0,3}))?": _imagenet_wide_resnet,
  convnext.SPELLING: convnext.from_name,
  swin.SPELLING: swin.from_name,
  vit.SPELLING: vit.from_name,
  xcit.SPELLING: xcit.from_name,
}


def _network(name: str, *, mean_sparse: bool, **options: Any) -> nn.Module:
  """The network with this name, which includes width and depth. Raises ValueError with the choices."""
  if user_code.is_name(name):
    if mean_sparse:
      raise ValueError(f"mean_sparse=True is for the networks of this project; {name!r} has its own activations.")
    return _user_network(name, **options)
  plain = name.removesuffix(MEAN_SPARSE)
  for spelling, create_network in _FAMILIES.items():
    if match := re.fullmatch(spelling, plain):
      network = create_network(match, **options)
      return _sparse(name, network) if mean_sparse or plain != name else network
  choices = f"choose from {list(NAMES)}, such as 'wide_resnet_34_10', or write package.module:function"
  raise ValueError(f"name={name!r} is not a model; {choices}.")


def _sparse(name: str, network: nn.Module) -> nn.Module:
  """The network with MeanSparse. Raises ValueError if it has no normalisation before its activations."""
  if not hasattr(network, "mean_sparse"):
    raise ValueError(
      f"mean_sparse: {name!r} has no normalisation before its activations, where MeanSparse would be placed."
    )
  return network.clone(mean_sparse=True)


def _user_network(name: str, *, num_classes: int, **options: Any) -> nn.Module:
  """The network from a user-defined function. Raises UserCodeError if it is missing, fails or returns another type."""
  network = user_code.function(name)(num_classes, **options)
  if not isinstance(network, nn.Module):
    raise user_code.UserCodeError(f"{name!r} returns {type(network).__name__}; it must return a flax.linen.Module.")
  return network


def features(model: nn.Module, variables: Variables, images: Images) -> list[Array]:
  """The activations [batch, h, w, c] that a network sows as "features": the outputs of its stages for those here.

  Raises:
    ValueError: the network sows none, which is possible for a user-defined one.
  """
  collection, name = FEATURES
  _, found = model.apply(variables, images, train=False, mutable=[collection])
  layers = found.get(collection, {}).get("network", {}).get(name, ())
  if not layers:
    raise ValueError(f"the network provides no features; its module must sow the outputs of its stages in {FEATURES}.")
  return list(layers)


@dataclasses.dataclass(frozen=True)
class Applied:
  """A classifier in evaluation mode as a function of (variables, images). Both attributes are jitted.

  Attributes:
    logits: (variables, images) -> logits, which a call of this object returns.
    features: (variables, images) -> activations, as returned by `features`.
  """

  logits: Callable[[Variables, Images], Logits]
  features: Callable[[Variables, Images], list[Array]]

  def __call__(self, variables: Variables, images: Images) -> Logits:
    return self.logits(variables, images)


def applied(model: nn.Module) -> Applied:
  """(variables, images) -> logits of a Flax module in evaluation mode; `Partial` of it and variables is a logits_fn.

  It is jitted for calls from code that is not: otherwise each operation of each layer would be compiled separately.
  """
  return Applied(jax.jit(functools.partial(model.apply, train=False)), jax.jit(functools.partial(features, model)))


def features_of(logits_fn: LogitsFn) -> FeaturesFn:
  """Images -> activations of the model of a logits_fn, which must be a `Partial` of `applied`.

  Raises:
    ValueError: it is another function, of which only the logits are known.
  """
  if not isinstance(logits_fn, Partial) or not isinstance(logits_fn.func, Applied):
    raise ValueError(
      "the model provides only logits, no features; a model from a configuration or a file of weights provides both."
    )
  return functools.partial(logits_fn.func.features, *logits_fn.args)


def microbatch_size(name: str, height: int, width: int, *, platform: str) -> int | None:
  """The fastest number of images of a given size to attack at once; None for all, as for any model but "cnn" on CPU.

  Args:
    platform: of the devices on which it runs, as in `jax.Device.platform`.
  """
  fitting = max(_CNN_PIXELS_AT_ONCE // (height * width), 1)
  return fitting if name == "cnn" and fitting <= _FEW and platform == "cpu" else None


def create(
  name: str,
  num_classes: int,
  *,
  dtype: str = "float32",
  mean: Sequence[float] = (0.0,),
  std: Sequence[float] = (1.0,),
  preprocessing: str = "mean_std",
  activation: str = "auto",
  mean_sparse: bool = False,
  remat: bool = False,
  axis_name: AxisName | None = None,
) -> Classifier:
  """A Flax classifier by name.

  Args:
    name: "cnn", "resnet18", "preact_resnet18", "wide_resnet_DEPTH_WIDTH" ("wide_resnet_34_10") and others of NAMES;
      "cnn_8" and "resnet18_16" are narrow ones. "package.module:function" is a user-defined function: (num_classes, *,
      dtype, axis_name) -> a Flax Linen module of (normalised images, train) -> logits, with no variables but params and
      batch_stats. Its module is imported.
    num_classes: 2 or more.
    dtype: the dtype of the network's computation, "float32" or "bfloat16"; parameters and logits are always float32.
    mean, std: per channel (or one for all) of the training images, for the normalisation inside the model.
    preprocessing: how images in [0, 1] are preprocessed inside the model: "mean_std"; "none"; "per_image", by each
      image's own mean and deviation (`standardised`); or "minus_one_to_one", 2 x - 1. The last three ignore mean and
      std.
    activation: "relu", "silu" (swish), "gelu", "gelu_tanh", or "auto": that of the published network. It is passed to a
      user-defined function only if it is not "auto".
    mean_sparse: whether MeanSparse (Amini et al., arXiv:2406.05927) is placed before each activation, and at the other
      places where the published networks have it; a name that ends in "_mean_sparse" has the same effect. With its
      initial values it changes nothing.
    remat: whether only the input of a block is stored for the backward pass, which recomputes the rest. Not available
      for networks without blocks and user-defined ones.
    axis_name: mesh axis, or axes, over which batch norm averages in train mode; None for one device.

  Raises:
    ValueError: an unknown name, dtype, preprocessing or activation, a user-defined function that is missing or fails,
      fewer than two classes, a mean or standard deviation that cannot normalise, MeanSparse in a user-defined network
      or in one without normalisation before its activations, or remat in a user-defined network or one without blocks.
  """
  if num_classes < 2:
    raise ValueError(f"num_classes={num_classes} must be 2 or more.")
  if dtype not in DTYPES:
    raise ValueError(f"dtype={dtype!r} is unknown; choose from {list(DTYPES)}.")
  if len(mean) != len(std) or not all(1e-6 <= s <= 1e6 for s in std) or not all(-1e6 <= m <= 1e6 for m in mean):
    raise ValueError(
      f"mean={tuple(mean)} and std={tuple(std)} must have the same length, no value beyond 1e6, and every std above 0 "
      "(at least 1e-6)."
    )
  if preprocessing not in PREPROCESSING:
    raise ValueError(f"preprocessing={preprocessing!r} is unknown; choose from {list(PREPROCESSING)}.")
  if activation not in ("auto", *ACTIVATIONS):
    raise ValueError(f"activation={activation!r} is unknown; choose from {['auto', *ACTIVATIONS]}.")
  options: dict[str, Any] = {} if activation == "auto" else {"activation": activation}
  if remat:
    if user_code.is_name(name) or re.fullmatch(_CNN, name.removesuffix(MEAN_SPARSE)):
      raise ValueError(f"remat=True: {name!r} has no blocks known to lrat_jax; use remat=False or another network.")
    options["remat"] = True
  options |= {"num_classes": num_classes, "dtype": jnp.dtype(dtype), "axis_name": axis_name}
  network = _network(name, mean_sparse=mean_sparse, **options)
  if preprocessing != "mean_std":
    mean, std = (0.0,), (1.0,)
  return Classifier(network, tuple(mean), tuple(std), preprocessing)
