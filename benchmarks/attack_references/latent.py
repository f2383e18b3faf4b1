"""`attacks.unforeseen` beside the code of its references: the same network, images, radius and number of steps.

    pip install torch torchvision recoloradv
    git clone https://github.com/ddkang/advex-uar PEERS/advex-uar
    git clone https://github.com/centerforaisafety/adversarial-corruptions PEERS/adversarial-corruptions
    python -m benchmarks.attack_references.latent --peers=PEERS

The network is small, trained here on scikit-learn's digits in random colours at 32x32, and has a twin in PyTorch.
Of StAdv and ReColorAdv the reference is what MultiRobustBench runs: Adam, 20 steps, the best iterate, and a penalty on
rough flows and colour maps, which ours has not. The references of the others take steps of epsilon / sqrt(20), as ours.
With `--write=FILE` the references' decoders are written instead, for tests/attacks/test_unforeseen.py.

The elastic attack was written for a `grid_sample` that aligns corners, as PyTorch's did then; it gets that one.
"""

import argparse
import contextlib
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

NUM_STEPS = 20
_SIDE = 32
# kind -> radius, the reference, whose attack it is.
STRENGTHS = {
  "stadv": (0.05, "recoloradv (MultiRobustBench)"),
  "elastic": (0.5, "advex-uar"),
  "recolor": (0.05, "recoloradv (MultiRobustBench)"),
  "jpeg_linf": (0.1, "advex-uar"),
  "jpeg_l1": (10.0, "advex-uar"),
  "hsv": (0.03, "adversarial-corruptions"),
  "pixel": (5.0, "adversarial-corruptions"),
  "gabor": (0.03, "adversarial-corruptions"),
  "fog": (0.4, "adversarial-corruptions"),
  "glitch": (0.05, "adversarial-corruptions"),
}


def decoder_inputs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """kind -> an image [32, 32, 3] and a latent, on which decoder and reference must agree.

  They differ by intent elsewhere: JPEG averages the chroma of 2x2 pixels first, ReColorAdv cuts colours far from grey,
  and glitch moves all by half a pixel, which cannot be seen where columns are constant.
  """
  generator = np.random.default_rng(0)
  draw = lambda low, high, *shape: generator.uniform(low, high, shape).astype(np.float32)
  image = draw(0, 1, _SIDE, _SIDE, 3)
  return {
    "stadv": (image, draw(-0.1, 0.1, _SIDE, _SIDE, 2)),
    "elastic": (image, draw(-1, 1, _SIDE, _SIDE, 2)),
    "recolor": (0.35 + 0.3 * image, draw(-0.06, 0.06, 16, 32, 32, 3)),
    "jpeg_linf": (0.35 + 0.3 * image[:16, :16].repeat(2, axis=0).repeat(2, axis=1), draw(-0.4, 0.4, 24 * 64)),
    "hsv": (image, draw(-0.1, 0.1, _SIDE, _SIDE, 3)),
    "pixel": (image, draw(0, 1, 8, 8, 3)),
    "fog": (image, draw(-0.5, 0.5, _SIDE, _SIDE)),
    "glitch": (image[:1].repeat(_SIDE, axis=0), draw(-0.1, 0.1, 16, 3)),
  }


@contextlib.contextmanager
def _on_cpu(peers: Path) -> Iterator[None]:
  """The clones can be imported, and what they put on a GPU stays here."""
  import torch
  from torch.overrides import TorchFunctionMode

  class OnCPU(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
      kwargs = dict(kwargs or {})
      if kwargs.get("device") == "cuda":
        kwargs["device"] = "cpu"
      return args[0] if function is torch.Tensor.cuda else function(*args, **kwargs)

  added = [str(peers / name) for name in ("advex-uar", "adversarial-corruptions")]
  with mock.patch.object(sys, "path", [*added, *sys.path]), OnCPU():
    import config  # of adversarial-corruptions, read as its modules are imported

    config.device = "cpu"
    yield


@contextlib.contextmanager
def _aligned_corners() -> Iterator[None]:
  import torch.nn.functional as F

  sample = F.grid_sample
  with mock.patch.object(F, "grid_sample", lambda *args, **options: sample(*args, **options | {"align_corners": True})):
    yield


def _to_torch(array: np.ndarray):
  """[n, h, w, c] -> [n, c, h, w]."""
  import torch

  return torch.tensor(np.asarray(array)).permute(0, 3, 1, 2).contiguous()


def _moved(image, latent):
  from recoloradv.mister_ed import spatial_transformers

  transform = spatial_transformers.FullSpatial(shape=image.shape, manual_gpu=False)
  transform.xform_params.data += latent.permute(0, 2, 3, 1).flip(-1)
  transform.clip_params()
  return transform(image)


def _recoloured(image, grid):
  from recoloradv import color_spaces, color_transformers

  space = color_spaces.CIELUVColorSpace()
  sizes = {"resolution_x": 16, "resolution_y": 32, "resolution_z": 32}
  transform = color_transformers.FullSpatial(shape=image.shape, manual_gpu=False, cspace=space, **sizes)
  transform.xform_params.data += grid
  return space.to_rgb(transform(space.from_rgb(image)))


def _elastic(image, latent):
  from advex_uar.attacks.elastic import ElasticDeformation

  with _aligned_corners():
    return ElasticDeformation(_SIDE, 5, 3 / 224 * _SIDE)(image, latent.flip(1) * 2 / (_SIDE - 1))


def _jpeg(image, latent):
  import torch
  from advex_uar.attacks.jpeg import JPEG

  # It works on transposed images: blocks go down the columns first, and so do coefficients.
  blocks = lambda part, side: part.view(1, side, side, 8, 8).permute(0, 2, 1, 4, 3).reshape(1, side * side, 8, 8)
  parts = [blocks(latent[:, :1024], 4), blocks(latent[:, 1024:1280], 2), blocks(latent[:, 1280:], 2)]
  return JPEG()(255 * image, parts, torch.ones(1)) / 255


def _fog(image, latent):
  from attacks import fog

  offsets, step = [], _SIDE
  while step >= 2:
    half = step // 2
    offsets += [latent[:, row::step, column::step] for row, column in ((half, half), (0, half), (half, 0))]
    step = half
  return fog.apply_fog(image, fog.fog_creator(offsets, 1, _SIDE, 3))


def decoded_by_references(peers: Path) -> dict[str, np.ndarray]:
  """kind -> the reference's image [32, 32, 3] for each of `decoder_inputs`, and a kernel of Gabor noise."""
  import torch

  with _on_cpu(peers):
    from attacks import gabor, glitch, hsv, pixel

    # Latents of images are [1, c, h, w], others as they are.
    decoders: dict[str, Callable[..., Any]] = {
      "stadv": _moved,
      "elastic": _elastic,
      "recolor": _recoloured,
      "jpeg_linf": _jpeg,
      "hsv": lambda image, latent: hsv.add_hsv_perturbation(latent, image, None, 3, 3.0),
      "pixel": lambda image, latent: pixel.pixelate_image(image, pixel.get_pixels(image, 4), latent),
      "fog": _fog,
      "glitch": lambda image, latent: glitch.glitch_image(image, latent.permute(0, 2, 1) + 1 / _SIDE, 16),
    }
    found = {}
    for kind, (image, latent) in decoder_inputs().items():
      field = latent.ndim == 3 and latent.shape[2] in (2, 3)
      latent = _to_torch(latent[None]) if field else torch.tensor(latent[None])
      decoded = decoders[kind](_to_torch(image[None]), latent)
      found[kind] = decoded.detach().permute(0, 2, 3, 1).numpy()[0]
    found["gabor"] = gabor.get_gabor_with_sides(23, 3, torch.tensor(4.0), torch.tensor(0.5), 3).numpy()
  return found


def _coloured_digits(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """scikit-learn's digits at 32x32, each in two random colours: images [n, 32, 32, 3] and labels."""
  from sklearn import datasets

  found = datasets.load_digits()
  generator = np.random.default_rng(seed)
  order = generator.permutation(len(found.target))
  shares = (found.images[order] / 16).repeat(4, axis=1).repeat(4, axis=2)[..., None]
  back, front = (generator.uniform(low, high, (len(order), 1, 1, 3)) for low, high in ((0.0, 0.45), (0.55, 1.0)))
  return (back + shares * (front - back)).astype(np.float32), found.target[order].astype(np.int32)


@functools.cache
def _trained(num_steps: int = 600, batch: int = 64):
  """A small network that knows those digits: (model, variables, held-out images, labels)."""
  import jax
  import jax.numpy as jnp
  import optax

  from lrat_jax import models

  images, labels = _coloured_digits()
  model = models.create("cnn_8", 10, mean=(0.4,) * 3, std=(0.3,) * 3)
  variables = model.init(jax.random.key(0), jnp.zeros((1, _SIDE, _SIDE, 3)))
  optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))

  @jax.jit
  def step(variables, state, x, y):
    loss = lambda variables: optax.softmax_cross_entropy_with_integer_labels(model.apply(variables, x), y).mean()
    updates, state = optimizer.update(jax.grad(loss)(variables), state)
    return optax.apply_updates(variables, updates), state

  state, generator = optimizer.init(variables), np.random.default_rng(1)
  for _ in range(num_steps):
    rows = generator.integers(0, 1500, batch)
    noise = generator.normal(0, 0.05, images[rows].shape).astype(np.float32)
    variables, state = step(variables, state, np.clip(images[rows] + noise, 0, 1), labels[rows])
  return model, variables, images[1500:], labels[1500:]


def _multirobustbench(kind: str, network, epsilon: float):
  """StAdv or ReColorAdv as MultiRobustBench calls them."""
  import torch
  from recoloradv import color_spaces, color_transformers, perturbations
  from recoloradv.mister_ed import adversarial_attacks, adversarial_perturbations, loss_functions, spatial_transformers

  bound = {"lp_style": "inf", "lp_bound": epsilon}
  if kind == "stadv":
    penalty = 0.0025
    options = bound | {"xform_class": spatial_transformers.FullSpatial, "use_stadv": True}
    threat = adversarial_perturbations.ThreatModel(adversarial_perturbations.ParameterizedXformAdv, options)
  else:
    penalty = 0.0036
    sizes = {"resolution_x": 16, "resolution_y": 32, "resolution_z": 32}
    space = {"cspace": color_spaces.CIELUVColorSpace(), "xform_params": sizes, "use_smooth_loss": True}
    options = bound | space | {"xform_class": color_transformers.FullSpatial}
    threat = adversarial_perturbations.ThreatModel(perturbations.ReColorAdv, options)
  normal = torch.nn.Identity()
  parts = {
    "cw": loss_functions.CWLossF6(network, normal, kappa=float("inf")),
    "pert": loss_functions.PerturbationNormLoss(lp=2),
  }
  loss = loss_functions.RegularizedLoss(parts, {"cw": 1.0, "pert": penalty / epsilon}, negate=True)
  attack = adversarial_attacks.PGD(network, normal, threat, loss, manual_gpu=False)
  steps = {"optimizer": torch.optim.Adam, "optimizer_kwargs": {"lr": epsilon / (NUM_STEPS - 2)}, "signed": False}
  run = functools.partial(attack.attack, num_iterations=NUM_STEPS, verbose=False, **steps)
  return lambda images, labels: run(images, labels).adversarial_tensors()


def _advex_uar(kind: str, network, epsilon: float):
  import torch
  from advex_uar.attacks import attacks, elastic_attack, jpeg_attack

  step = epsilon / math.sqrt(NUM_STEPS)
  if kind == "elastic":
    attack = elastic_attack.ElasticAttack(
      NUM_STEPS, epsilon, step, _SIDE, kernel_size=5, kernel_std=3 / 224 * _SIDE, scale_each=True
    )
  else:
    attack = jpeg_attack.JPEGAttack(NUM_STEPS, epsilon, step, _SIDE, opt=kind.removeprefix("jpeg_"), scale_each=True)
  attack.transform, attack.inverse_transform = (lambda x: x / 255), (lambda x: x * 255)
  back = attacks.InverseImagenetTransform(_SIDE)

  class Normalised(torch.nn.Module):
    def forward(self, x):
      return network(back(x) / 255)

  run = lambda images, labels: attack(Normalised().eval(), images, labels, scale_eps=False, avoid_target=True)

  def aligned(images, labels):
    with _aligned_corners():
      return run(images, labels)

  return aligned if kind == "elastic" else run


def _adversarial_corruptions(kind: str, network, epsilon: float):
  from attacks import fog, gabor, glitch, hsv, pixel

  steps = {"epsilon": epsilon, "num_steps": NUM_STEPS, "step_size": epsilon / math.sqrt(NUM_STEPS)}
  # The constants of its attack_params_cifar10_default.conf.
  attack = {
    "hsv": lambda: hsv.HSVAdversary(**steps, distance_metric="linf", kernel_size=3, sigma=3.0),
    "pixel": lambda: pixel.PixelAdversary(**steps, distance_metric="l2", pixel_size=4),
    "gabor": lambda: gabor.GaborAdversary(
      **steps, distance_metric="linf", kernel_size=23, sides=3, sigma=3, weight_density=0.1
    ),
    "fog": lambda: fog.FogAdversary(**steps, distance_metric="linf", wibbledecay=3),
    "glitch": lambda: glitch.GlitchAdversary(**steps, num_lines=16, grey_strength=0),
  }[kind]()
  return lambda images, labels: attack(network, images, labels)


def _peer(kind: str, network, epsilon: float):
  maker = {"recoloradv (MultiRobustBench)": _multirobustbench, "advex-uar": _advex_uar}
  return maker.get(STRENGTHS[kind][1], _adversarial_corruptions)(kind, network, epsilon)


def rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
  """For each kind the robust accuracy that ours leaves and that the reference leaves, and seconds a call.

  Args:
    arguments: `peers`, the folder with the clones, and `num_images`; both may be missing.
  """
  import jax
  import torch

  from benchmarks import torch_models
  from lrat_jax import attacks

  peers, count = getattr(arguments, "peers", None), getattr(arguments, "num_images", 128)
  model, variables, images, labels = _trained()
  images, labels = images[:count], labels[:count]
  network = torch_models.classifier(model, variables).eval()
  keys = attacks.example_keys(jax.random.key(0), np.arange(len(labels)))
  found = []
  for kind, (epsilon, reference) in STRENGTHS.items():
    if peers is None and reference != "recoloradv (MultiRobustBench)":
      continue
    options = {"kind": kind, "epsilon": epsilon, "num_steps": NUM_STEPS}
    ours = jax.jit(
      lambda x, y, options=options: attacks.unforeseen(keys, functools.partial(model.apply, variables), x, y, **options)
    )
    jax.block_until_ready(ours(images, labels))
    start = time.perf_counter()
    left = 1 - float(jax.block_until_ready(ours(images, labels)).success.mean())
    seconds = time.perf_counter() - start
    with _on_cpu(peers) if peers else contextlib.nullcontext():
      torch.manual_seed(0)
      attack = _peer(kind, network, epsilon)
      inputs, targets = _to_torch(images), torch.tensor(labels).long()
      start = time.perf_counter()
      adversarial = attack(inputs, targets).detach()
      theirs_seconds = time.perf_counter() - start
      theirs = float((network(adversarial).argmax(1) == targets).float().mean())
    found.append(
      {
        "attack": kind,
        "reference": reference,
        "measure": f"robust accuracy at {epsilon:g}, {NUM_STEPS} steps, {len(labels)} images",
        "ours": left,
        "theirs": theirs,
        "seconds_ours": seconds,
        "seconds_theirs": theirs_seconds,
      }
    )
  return found


def main() -> None:
  options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  options.add_argument("--peers", type=Path, help="the folder with the clones")
  options.add_argument("--num_images", type=int, default=128)
  options.add_argument("--write", type=Path, help="an npz for each ninth pixel of the references' decoders")
  arguments = options.parse_args()
  if arguments.write:
    np.savez(
      arguments.write, **{kind: image[::9, ::9] for kind, image in decoded_by_references(arguments.peers).items()}
    )
    return
  for row in rows(arguments):
    print(json.dumps(row))


if __name__ == "__main__":
  main()
