"""The results of the decoders of `latent`'s references, for tests without these packages.

    python -c "from benchmarks.attack_references import latent_decoders as d; d.write_golden(PEERS, d.GOLDEN)"

writes the reference results of tests/attacks/test_unforeseen.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attack_references.latent_peers import SIDE, aligned_corners, on_cpu, to_torch

GOLDEN = Path(__file__).parents[2] / "tests" / "attacks" / "unforeseen_reference.npz"
# The distance between the pixels of a golden image that are kept.
STRIDE = 9


def decoder_inputs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """kind -> an image [32, 32, 3] and a latent, on which decoder and reference must agree.

  For other inputs, the references differ from ours, which is intended: JPEG averages the chroma of 2x2 pixels first,
  ReColorAdv clips colours far from grey, and glitch shifts the image by half a pixel, which has no effect if columns
  are constant.
  """
  generator = np.random.default_rng(0)
  draw = lambda low, high, *shape: generator.uniform(low, high, shape).astype(np.float32)
  image = draw(0, 1, SIDE, SIDE, 3)
  return {
    "stadv": (image, draw(-0.1, 0.1, SIDE, SIDE, 2)),
    "elastic": (image, draw(-1, 1, SIDE, SIDE, 2)),
    "recolor": (0.35 + 0.3 * image, draw(-0.06, 0.06, 16, 32, 32, 3)),
    "jpeg_linf": (0.35 + 0.3 * image[:16, :16].repeat(2, axis=0).repeat(2, axis=1), draw(-0.4, 0.4, 24 * 64)),
    "hsv": (image, draw(-0.1, 0.1, SIDE, SIDE, 3)),
    "pixel": (image, draw(0, 1, 8, 8, 3)),
    "fog": (image, draw(-0.5, 0.5, SIDE, SIDE)),
    "glitch": (image[:1].repeat(SIDE, axis=0), draw(-0.1, 0.1, 16, 3)),
  }


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

  with aligned_corners():
    return ElasticDeformation(SIDE, 5, 3 / 224 * SIDE)(image, latent.flip(1) * 2 / (SIDE - 1))


def _jpeg(image, latent):
  import torch
  from advex_uar.attacks.jpeg import JPEG

  # The reference works on transposed images: blocks and coefficients are in column-major order.
  blocks = lambda part, side: part.view(1, side, side, 8, 8).permute(0, 2, 1, 4, 3).reshape(1, side * side, 8, 8)
  parts = [blocks(latent[:, :1024], 4), blocks(latent[:, 1024:1280], 2), blocks(latent[:, 1280:], 2)]
  return JPEG()(255 * image, parts, torch.ones(1)) / 255


def _fog(image, latent):
  from attacks import fog

  offsets, step = [], SIDE
  while step >= 2:
    half = step // 2
    offsets += [latent[:, row::step, column::step] for row, column in ((half, half), (0, half), (half, 0))]
    step = half
  return fog.apply_fog(image, fog.fog_creator(offsets, 1, SIDE, 3))


def decoded_by_references(peers: Path) -> dict[str, np.ndarray]:
  """kind -> the reference's image [32, 32, 3] for each of `decoder_inputs`, and a kernel of Gabor noise."""
  import torch

  with on_cpu(peers):
    from attacks import gabor, glitch, hsv, pixel

    # Latents that are images are [1, c, h, w], others are unchanged.
    decoders: dict[str, Callable[..., Any]] = {
      "stadv": _moved,
      "elastic": _elastic,
      "recolor": _recoloured,
      "jpeg_linf": _jpeg,
      "hsv": lambda image, latent: hsv.add_hsv_perturbation(latent, image, None, 3, 3.0),
      "pixel": lambda image, latent: pixel.pixelate_image(image, pixel.get_pixels(image, 4), latent),
      "fog": _fog,
      "glitch": lambda image, latent: glitch.glitch_image(image, latent.permute(0, 2, 1) + 1 / SIDE, 16),
    }
    found = {}
    for kind, (image, latent) in decoder_inputs().items():
      field = latent.ndim == 3 and latent.shape[2] in (2, 3)
      latent = to_torch(latent[None]) if field else torch.tensor(latent[None])
      decoded = decoders[kind](to_torch(image[None]), latent)
      found[kind] = decoded.detach().permute(0, 2, 3, 1).numpy()[0]
    found["gabor"] = gabor.get_gabor_with_sides(23, 3, torch.tensor(4.0), torch.tensor(0.5), 3).numpy()
  return found


def write_golden(peers: str | Path, to: str | Path) -> None:
  """Writes every ninth pixel, in both directions, of the results of `decoded_by_references`."""
  found = decoded_by_references(Path(peers))
  np.savez(to, **{kind: image[::STRIDE, ::STRIDE] for kind, image in found.items()})
