"""Small experiments for the tests: a configuration, arrays for a data set, and everything built from them."""

import jax
import jax.numpy as jnp
import numpy as np

from lrat_jax import data
from lrat_jax.config import default as config_lib
from lrat_jax.core import sharding
from lrat_jax.training import experiment as experiment_lib

# The image shapes of presets that do not have CIFAR's shape.
SHAPES = {
  "digits": (8, 8, 1),
  "fashion_mnist": (28, 28, 1),
  "tiny_imagenet": (64, 64, 3),
  "imagenet": (224, 224, 3),
}

# Fields with which a run on digits takes only seconds.
SMALL = {
  "model.name": "cnn_4",
  "train.epochs": 2,
  "train.log_every_steps": 3,
  "eval.batch_size": 128,
  "eval.num_sanity_examples": 0,
  "train_attacks.pgd.num_steps": 2,
  "validation_attack.num_steps": 2,
  "eval.suite.pgd20.num_steps": 2,
  "eval.suite.cw20.num_steps": 2,
}

# Fields in the form that `make_config` takes, for a few steps with local weights only.
STEP = {
  "data__batch_size": 16,
  "model__name": "cnn_2",
  "train_attacks__pgd__num_steps": 2,
  "train__epsilon_ramp_fraction": 0.0,
  "optimizer__schedule": "constant",
  "local_weights__kind": "lrat",
}


def make_config(arg="digits,suite=pgd", **fields):
  """The default configuration with some fields changed; `train.epochs` is written "train__epochs"."""
  config = config_lib.default("test", arg)
  config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return config


def make_split(count, shape=(8, 8, 1), num_classes=4, seed=0):
  """Images that a small network can learn: each class is brighter in its own rows, a quarter of them for 4 classes."""
  generator = np.random.default_rng(seed)
  labels = (np.arange(count) % num_classes).astype(np.int32)
  images = generator.uniform(0, 0.6, (count, *shape)).astype(np.float32)
  rows = shape[0] // num_classes
  for image, label in zip(images, labels, strict=True):
    image[label * rows : (label + 1) * rows] += 0.4
  return data.Split(images, labels, np.arange(count, dtype=np.int32))


def make_experiment(config, num_devices=1, shape=(8, 8, 1), count=64):
  """An `Experiment` on `make_split` images on the first devices; the config says how they share the state."""
  dataset = data.Dataset(make_split(count, shape), make_split(20, shape, seed=1), make_split(21, shape, seed=2), 4)
  return experiment_lib.build(config, dataset, sharding.make_mesh(num_devices, config.mesh.model_devices))


def features(images):
  """Activations for tests of attacks that need them: the images and their negatives, at full and at half resolution."""
  both = jnp.concatenate([images, 1 - images], axis=-1)
  batch, height, width, channels = both.shape
  return [both, both.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))]


def to_numpy(tree):
  return jax.tree.map(np.asarray, tree)
