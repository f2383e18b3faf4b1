"""Builds what a configuration describes, for training and evaluation: model, optimiser, number of steps, states."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jax.tree_util import Partial
from ml_collections import ConfigDict

from lrat_jax import data, models
from lrat_jax.config.default import LOCAL
from lrat_jax.core import sharding
from lrat_jax.training import optim
from lrat_jax.training import step as step_lib


class Experiment(NamedTuple):
  """What is built from a configuration, the same for training and for evaluation.

  Attributes:
    model: the network as it is trained and validated.
    eval_model: the same network in float32, for evaluation.
  """

  config: ConfigDict
  dataset: data.Dataset
  mesh: Mesh
  model: nn.Module
  eval_model: nn.Module
  optimizer: optax.GradientTransformation
  steps_per_epoch: int
  total_steps: int

  @property
  def training_source(self) -> data.Split | data.Mixture:
    """The source of training batches: the training split, or its mixture with the extra source."""
    return data.training_source(self.dataset, self.config.data.extra.fraction)

  @property
  def microbatch_size(self) -> int | None:
    """How many images an attack on the network processes at once (`models.microbatch_size`)."""
    return models.microbatch_size(
      self.config.model.name, *self.dataset.image_shape[:2], platform=sharding.platform(self.mesh)
    )

  def logits_fn(self, state: step_lib.TrainState) -> Partial:
    """Images -> logits, with the evaluated variables of a state (`TrainState.eval_variables`)."""
    return Partial(models.applied(self.eval_model), state.eval_variables)

  def attacked_fn(self, state: step_lib.TrainState) -> Partial | None:
    """The same in the data type for attacks (`config.eval.attack_dtype`); None if that is float32 too."""
    if (dtype := self.config.eval.attack_dtype) == "float32":
      return None
    model = create_model(self.config, self.dataset.num_classes, dtype)
    return Partial(models.applied(model), state.eval_variables)

  def initial_state(self, arrays: Mapping[str, Any] = MappingProxyType({})) -> step_lib.TrainState:
    """The state before the first step, placed on the devices; `arrays` replaces variables by name."""
    # A sharded state may be too large for a single device, so it is created on the host.
    home = jax.local_devices(backend="cpu")[0] if self.mesh.shape[sharding.MODEL] > 1 else None
    with jax.default_device(home):
      state = step_lib.begin_with(self._create_state(), arrays)
    return sharding.put(state, self.mesh, step_lib.state_specs(self.config, self.mesh, state))

  def abstract_state(self, *, evaluates: bool = False) -> step_lib.TrainState:
    """The shapes, dtypes and shardings of `initial_state`'s arrays; nothing is computed.

    With `evaluates` the variables are replicated, as an evaluation needs them.
    """
    state = jax.eval_shape(self._create_state)
    specs = step_lib.state_specs(self.config, self.mesh, state)
    if evaluates:
      whole = lambda tree: jax.tree.map(lambda _: sharding.REPLICATED, tree)
      specs = specs.replace(variables=whole(specs.variables), ema=whole(specs.ema))
    place = functools.partial(jax.sharding.NamedSharding, self.mesh)
    to_abstract = lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(spec))
    return jax.tree.map(to_abstract, state, specs)

  def _create_state(self) -> step_lib.TrainState:
    return step_lib.create_state(self.config, self.model, self.optimizer, self.dataset.image_shape)


def compute_type(dtype: str, mesh: Mesh) -> str:
  """The dtype of the network's computations in training: "auto" is bfloat16 on an accelerator, float32 elsewhere."""
  if dtype != "auto":
    return dtype
  return "float32" if sharding.platform(mesh) == "cpu" else "bfloat16"


def create_model(config: ConfigDict, num_classes: int, dtype: str) -> models.Classifier:
  """The network of a configuration, which computes in `dtype`."""
  return models.create(
    config.model.name,
    num_classes,
    dtype=dtype,
    axis_name=None if config.model.batch_norm == LOCAL else sharding.AXIS,
    **{name: config.model[name] for name in models.OPTIONS},
  )


def build(config: ConfigDict, dataset: data.Dataset, mesh: Mesh) -> Experiment:
  """Builds model, optimiser and number of steps from a checked configuration.

  If labels are distributions, training may use them as they are; validation and evaluation use the true classes.
  """
  dataset = dataset._replace(
    train=data.for_training(dataset.train),
    validation=data.for_evaluation(dataset.validation),
    test=data.for_evaluation(dataset.test),
    extra=None if dataset.extra is None else data.for_training(dataset.extra),
  )
  create = functools.partial(create_model, config, dataset.num_classes)
  model = create(compute_type(config.model.dtype, mesh))
  # Attacks are weaker in bfloat16, and its predictions differ from float32's: robustness would be overestimated.
  eval_model = create("float32")
  steps_per_epoch = data.steps_per_epoch(dataset.train, config.data.batch_size)
  total_steps = config.train.epochs * steps_per_epoch
  optimizer = optim.create(config.optimizer, max(total_steps, 1))  # 0 if only the test split was read
  return Experiment(config, dataset, mesh, model, eval_model, optimizer, steps_per_epoch, total_steps)
