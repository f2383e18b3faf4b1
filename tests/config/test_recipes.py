"""The recipes of configs/recipes: their docstrings are complete, their configurations are valid, and they train."""

import ast
import importlib.util
import operator
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import main, models
from lrat_jax.config import validate

ROOT = Path(__file__).parent.parent.parent
RECIPES = {path.stem: path for path in sorted((ROOT / "configs" / "recipes").glob("*.py"))}
# RobustBench's clean and AutoAttack accuracy, millions of parameters, and a narrow network of the same architecture.
PUBLISHED = {
  "rice2020": ("85.34", "53.42", 184.5, "wide_resnet_10_1"),
  "rebuffi2021": ("87.33", "60.75", 36.5, "dm_wide_resnet_10_1"),
  "wang2023": ("92.44", "67.31", 36.5, "dm_wide_resnet_10_1"),
  "debenedetti2022": ("72.34", "41.78", 26.3, "xcit_1_8_2_p16"),
  "singh2023": ("72.72", "49.46", 28.6, "convnext_1-1_4-8"),
}


def _config(name):
  spec = importlib.util.spec_from_file_location(name, RECIPES[name])
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


# From the authors' code: scripts, their arguments and defaults.
SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
ADAMW = {"name": "adamw", "momentum": 0.9, "decay": "kernels"}
PGD_10 = {"epsilon": "8/255", "step_size": "2/255", "num_steps": 10, "random_start": "uniform"}
CIFAR = {"crop_padding": 4, "flip": True}
IMAGENET = {"source": "tfds:imagenet2012", "image_size": 224, "random_resized_crop": 0.08, "flip": True}
CONSTANTS = {
  "rice2020": {
    "data": {**CIFAR, "batch_size": 128, "validation_size": 1000, "extra.source": ""},
    "model": {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616), "name": "wide_resnet_34_20"},
    "train": {"epochs": 200, "attack_batch_norm": "train", "ema_decay": 0.0, "label_smoothing": 0.0},
    "optimizer": {**SGD, "learning_rate": 0.1, "nesterov": False, "decay": "all", "schedule": "piecewise",
                  "boundary_fractions": (0.5, 0.75), "decay_rate": 0.1},
    "train_attacks.pgd": {**PGD_10, "loss": "ce"},
    "validation_attack": {"epsilon": "8/255", "step_size": "2/255", "num_steps": 10},
  },
  "rebuffi2021": {
    "data": {**CIFAR, "batch_size": 1024, "validation_size": 1024, "extra.fraction": 0.7, "cutmix": 1.0},
    "train": {"epochs": 400, "attack_batch_norm": "train", "ema_decay": 0.995, "label_smoothing": 0.0},
    "optimizer": {**SGD, "learning_rate": 0.4, "nesterov": True, "decay": "kernels", "schedule": "cosine",
                  "warmup": 10 / 400},
    "train_attacks.pgd": {**PGD_10, "loss": "ce"},  # with the mixed labels
    "": {"objective": "trades", "beta": 6.0},
  },
  "wang2023": {
    "data": {**CIFAR, "batch_size": 512, "validation_size": 1024, "extra.fraction": 0.7, "cutmix": 0.0},
    "train": {"epochs": 400, "attack_batch_norm": "train", "ema_decay": 0.995, "label_smoothing": 0.1},
    "optimizer": {**SGD, "learning_rate": 0.2, "nesterov": True, "decay": "kernels", "schedule": "one_cycle",
                  "warmup": 0.025},
    "train_attacks.kl": {**PGD_10, "loss": "kl"},
    "": {"objective": "trades", "beta": 5.0},
  },
  "debenedetti2022": {
    "data": {**IMAGENET, "batch_size": 8 * 64, "mixup": 0.0, "cutmix": 0.0, "crop_padding": 0},
    "model": {"mean": (0.0,), "std": (1.0,), "batch_norm": "local"},
    "train": {"epochs": 100 + 10, "attack_batch_norm": "train", "label_smoothing": 0.1, "ema_decay": 0.0,
              "epsilon_ramp_fraction": 10 / 110},
    "optimizer": {**ADAMW, "learning_rate": 5e-4, "weight_decay": 0.5, "second_momentum": 0.999, "schedule": "cosine",
                  "warmup": 10 / 110},
    "train_attacks.pgd": {"epsilon": "4/255", "step_size": "6/255", "num_steps": 1, "random_start": "uniform"},
  },
  "singh2023": {
    "data": {**IMAGENET, "batch_size": 8 * 80, "mixup": 0.8, "cutmix": 1.0, "crop_padding": 0,
             "randaugment.num_ops": 2, "randaugment.magnitude": 9},
    "model": {"mean": (0.0,), "std": (1.0,)},
    "train": {"epochs": 300, "label_smoothing": 0.1, "ema_decay": 0.9999, "epsilon_ramp_fraction": 0.0},
    "optimizer": {**ADAMW, "learning_rate": 1e-3, "weight_decay": 0.05, "second_momentum": 0.95, "schedule": "cosine",
                  "warmup": 20 / 300},
    "train_attacks.apgd": {"name": "apgd", "epsilon": "4/255", "num_steps": 2, "loss": "ce"},
  },
}  # fmt: skip


def test_there_is_a_test_of_every_recipe():
  assert set(RECIPES) == set(PUBLISHED) == set(CONSTANTS)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_constants_are_the_originals(name):
  config = _config(name)
  expected = {
    f"{group}.{field}".strip("."): value for group, of in CONSTANTS[name].items() for field, value in of.items()
  }
  assert {path: operator.attrgetter(path)(config) for path in expected} == expected


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_and_makes_sense(name):
  text = " ".join(ast.get_docstring(ast.parse(RECIPES[name].read_text())).split())
  assert re.search(r"arXiv:\d{4}\.\d{5}\)", text) and f"--config=configs/recipes/{name}.py" in text
  assert re.search(r"Constants are those of github.com/[\w-]+/[\w-]+", text) and "What differs here:" in text
  assert "Needs " in text and "It was not run here at full size." in text
  for accuracy in PUBLISHED[name][:2]:
    assert f"{accuracy} %" in text
  config = _config(name)
  assert config.name == name and list(config.eval.suite) == ["autoattack"]
  validate.check(config)
  validate.check_form(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_network_is_of_the_published_size(name):
  config, imagenet = _config(name), name in ("debenedetti2022", "singh2023")
  model = models.create(config.model.name, 1000 if imagenet else 10)
  images = jax.ShapeDtypeStruct((1, *((224, 224, 3) if imagenet else (32, 32, 3))), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  millions = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) / 1e6
  assert millions == pytest.approx(PUBLISHED[name][2], abs=0.1)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
  """A folder with a few random images instead of CIFAR-10 or ImageNet, and some instead of generated images."""
  folder, random = tmp_path_factory.mktemp("stand_in"), np.random.default_rng(0)
  draw = lambda count: random.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
  labels = lambda count: np.arange(count) % 10
  splits = {f"{split}_images": draw(count) for split, count in (("train", 64), ("test", 16))}
  splits |= {f"{split}_labels": labels(count) for split, count in (("train", 64), ("test", 16))}
  np.savez(folder / "data.npz", **splits)
  np.savez(folder / "extra.npz", image=draw(40), label=labels(40))
  return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_on_a_stand_in(name, stand_in, tmp_path, monkeypatch, capsys):
  """A dry run, which runs a few steps, with a narrow network on images of 32x32 pixels."""
  monkeypatch.chdir(tmp_path)
  fields = {"data.source": f"npz:{stand_in}/data.npz", "model.name": PUBLISHED[name][3]}
  fields |= {"data.batch_size": 16, "data.validation_size": 16, "eval.batch_size": 16}
  fields |= {"data.image_size": 0, "data.random_resized_crop": 0.0}  # arrays cannot be resized
  if _config(name).data.extra.source:
    fields["data.extra.source"] = f"npz:{stand_in}/extra.npz"
  arguments = [f"--config.{field}={value}" for field, value in fields.items()]
  assert main.main([f"--config={RECIPES[name]}", *arguments, "--dry_run"]) == 0, capsys.readouterr().err
  said = capsys.readouterr().out
  assert f"run         {name}, seed 0; a dry run" in said and "of training" in said
  assert ("40 images, 11 in every batch" in said) == ("data.extra.source" in fields)
