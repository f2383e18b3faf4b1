"""Our corruptions compared with the code that made CIFAR-10-C (github.com/hendrycks/robustness), on the same bytes.

    git clone https://github.com/hendrycks/robustness
    pip install scikit-image opencv-python-headless wand    # Wand needs ImageMagick: apt install libmagickwand-dev

`rows` takes the path of its ImageNet-C/create_c/make_cifar_c.py. Only the functions of that file are run, with the
current names of the modules that they use. Every kind is compared by the mean change of images; those in `SHARED` and
`FIXED` also image by image, with the same random numbers on both sides. Without ImageMagick, `motion_blur` and `snow`
are left out.

    python -c "from benchmarks.attack_references import corruptions as c; c.write_golden(PATH, c.GOLDEN)"

writes the reference results of tests/attacks/test_corruptions_reference.py, which needs none of these packages.
"""

import argparse
import ast
import contextlib
import ctypes
import io
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy import ndimage

from lrat_jax.attacks import corruptions
from lrat_jax.attacks.corruptions import _blur, _digital, _filters, _spatter, _weather

GOLDEN = Path(__file__).parents[2] / "tests" / "attacks" / "corruptions_golden.npz"
SEVERITIES = range(1, corruptions.SEVERITIES + 1)
_SIDE = 32  # fixed in the original's code
# The distance between the pixels of a golden image that are kept.
STRIDE = 4

Draws = dict[str, np.ndarray]


def images(count: int) -> np.ndarray:
  """Smooth random pictures, uint8 [count, 32, 32, 3]."""
  noise = np.random.default_rng(0).normal(size=(count, _SIDE, _SIDE, 3))
  smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 0))
  return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def draws(kind: str, severity: int) -> Draws:
  """The random numbers of one image's corruption, by the names that `SHARED` uses; the same in every call."""
  generator = np.random.default_rng([zlib.crc32(kind.encode()), severity])
  uniform = lambda *shape: generator.uniform(-1, 1, shape)
  return {
    "angle": uniform(),
    "flakes": generator.normal(size=(_SIDE, _SIDE, 1)),
    "offsets": generator.integers(-1, 1, size=(2, _SIDE, _SIDE, 2)),
    "corners": uniform(3, 2),
    "field": uniform(2, _SIDE, _SIDE),
    **{f"level {level}": uniform(3, 2**level, 2**level) for level in range(5)},
  }


def _levels(drawn: Draws) -> list[np.ndarray]:
  return [drawn[f"level {level}"] for level in range(5)]


def _glass(image, drawn, strength):
  return _blur.through_glass(image, drawn["offsets"][: strength[1]], strength[0])


def _motion(image, drawn, strength):
  return _filters.motion(image, *strength, 45 * drawn["angle"])


def _snow(image, drawn, strength):
  return _weather.with_snow(image, drawn["flakes"], -90 + 45 * drawn["angle"], strength)


def _fog(image, drawn, strength):
  return _weather.in_fog(image, _weather.plasma(_levels(drawn), strength[1])[..., None], strength[0])


def _elastic(image, drawn, strength):
  return _digital.bent(image, drawn["corners"], drawn["field"], strength)


def _spattered(image, drawn, strength):
  return _spatter.spattered(image, drawn["flakes"][..., 0], strength)


def _in_turn(values) -> Callable[..., Any]:
  """Replaces a function of NumPy's: returns the values one after another, times its upper bound."""
  iterator = iter(values)
  return lambda low, high, size: high * next(iterator)


def _pixels(drawn: Draws):
  """The offsets in the order in which the original draws them: from the last pixel to the third."""
  places = range(_SIDE - 1, 1, -1)
  return iter([offsets[row, column] for offsets in drawn["offsets"] for row in places for column in places])


def _glass_draws(drawn):
  pixels = _pixels(drawn)
  return {"randint": lambda *_, **__: next(pixels)}


def _snow_draws(drawn):
  normal = lambda size, loc, scale: loc + scale * drawn["flakes"].reshape(size)
  return {"normal": normal, "uniform": lambda low, high: (low + high) / 2 + (high - low) / 2 * drawn["angle"]}


def _spatter_draws(drawn):
  return {"normal": lambda size, loc, scale: loc + scale * drawn["flakes"].reshape(size)}


# kind -> (ours with given random numbers, the functions that replace numpy.random's to give the original the same)
SHARED: dict[str, tuple[Callable[..., jax.Array], Callable[[Draws], Mapping[str, Any]]]] = {
  "glass_blur": (_glass, _glass_draws),
  "motion_blur": (_motion, lambda drawn: {"uniform": lambda low, high: high * drawn["angle"]}),
  "snow": (_snow, _snow_draws),
  "spatter": (_spattered, _spatter_draws),
  "fog": (_fog, lambda drawn: {"uniform": _in_turn(draw for level in _levels(drawn) for draw in level)}),
  "elastic_transform": (_elastic, lambda drawn: {"uniform": _in_turn([drawn["corners"], *drawn["field"]])}),
}
# Kinds without random numbers; the golden images have those that tests compare with no formula or library.
_GOLDEN_FIXED = ("defocus_blur", "zoom_blur", "saturate")
FIXED = (*_GOLDEN_FIXED, "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur")


def ours(kind: str, severity: int, image: np.ndarray) -> np.ndarray:
  """Our result for an image uint8 [32, 32, 3], float in [0, 1]; `SHARED` kinds use `draws`."""
  function, strengths = corruptions.KINDS[kind]
  strength, floats = strengths[severity - 1], jnp.asarray(image / 255, jnp.float32)
  if kind in FIXED:
    corrupted = function(jax.random.key(0), floats, strength)
  else:
    drawn = draws(kind, severity)
    offsets = drawn.pop("offsets")
    drawn = {name: jnp.asarray(array, jnp.float32) for name, array in drawn.items()} | {"offsets": jnp.asarray(offsets)}
    corrupted = SHARED[kind][0](floats, drawn, strength)
  return np.asarray(jnp.clip(corrupted, 0, 1))


def published(path: Path) -> dict[str, Callable[[Image.Image, int], Any]]:
  """The functions of make_cifar_c.py by name: (image, severity) -> values in 0..255. Raises ImportError."""
  import cv2
  import skimage.color
  import skimage.filters
  import skimage.util

  def gaussian(values, sigma, multichannel=False, **options):
    return skimage.filters.gaussian(values, sigma=sigma, channel_axis=-1 if multichannel else None, **options)

  names = {"np": np, "cv2": cv2, "sk": skimage, "gaussian": gaussian, "PILImage": Image, "BytesIO": io.BytesIO}
  names |= {"scizoom": ndimage.zoom, "map_coordinates": ndimage.map_coordinates}
  with contextlib.suppress(ImportError):
    names["MotionImage"] = _motion_image()
  text = path.read_text().replace("np.float_", "np.float64").replace("np.fromstring", "np.frombuffer")
  tree = ast.parse(text)
  tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
  exec(compile(tree, str(path), "exec"), names)
  needs_magick = () if "MotionImage" in names else ("motion_blur", "snow")
  return {kind: names[kind] for kind in corruptions.CORRUPTIONS if kind not in needs_magick}


def _motion_image() -> type:
  """The class that the original uses for motion blur: it calls ImageMagick's, which Wand does not offer by itself."""
  from wand.api import library
  from wand.image import Image as WandImage

  blur = library.MagickMotionBlurImage
  blur.argtypes = (ctypes.c_void_p, *[ctypes.c_double] * 3)

  class MotionImage(WandImage):
    def motion_blur(self, radius=0.0, sigma=0.0, angle=0.0):
      blur(self.wand, radius, sigma, angle)

  return MotionImage


def theirs(function: Callable[..., Any], kind: str, severity: int, image: np.ndarray) -> np.ndarray:
  """The original's result for an image uint8 [32, 32, 3], float in [0, 1]; `SHARED` kinds use `draws`."""
  changes = SHARED[kind][1](draws(kind, severity)) if kind in SHARED else {}
  with contextlib.ExitStack() as stack:
    for name, value in changes.items():
      stack.enter_context(mock.patch.object(np.random, name, value))
    return np.asarray(function(Image.fromarray(image), severity), float) / 255


def write_golden(path: str | Path, to: str | Path) -> None:
  """Writes every fourth pixel of the original's results on the first of `images`, by kind [5, 8, 8, 3]."""
  functions, (image,) = published(Path(path)), images(1)
  results = {
    kind: np.stack([theirs(functions[kind], kind, severity, image)[::STRIDE, ::STRIDE] for severity in SEVERITIES])
    for kind in (*SHARED, *_GOLDEN_FIXED)
  }
  np.savez_compressed(to, **{kind: array.astype(np.float32) for kind, array in results.items()})


def _timed(call: Callable[[], Any]) -> tuple[np.ndarray, float]:
  start = time.perf_counter()
  found = np.asarray(call())
  return found, time.perf_counter() - start


def _row(kind: str, measure: str, ours: float, theirs: float, seconds: tuple[float | None, float | None]) -> dict:
  fixed = {"attack": f"corruption {kind}", "reference": "make_cifar_c.py", "measure": measure}
  return fixed | {"ours": ours, "theirs": theirs, "seconds_ours": seconds[0], "seconds_theirs": seconds[1]}


def _mean_changes(kind: str, function: Callable[..., Any], pictures: np.ndarray) -> list[dict]:
  """The mean change of images at each severity; each side draws its own random numbers."""
  ours_of, strengths = corruptions.KINDS[kind]
  keys, floats, rows = jax.random.split(jax.random.key(0), len(pictures)), jnp.asarray(pictures / 255, jnp.float32), []
  np.random.seed(0)
  for severity, strength in zip(SEVERITIES, strengths, strict=True):
    run = jax.jit(jax.vmap(lambda key, image, strength=strength: ours_of(key, image, strength)))
    run(keys, floats).block_until_ready()
    mine, seconds = _timed(lambda run=run: jnp.clip(run(keys, floats), 0, 1))
    their_call = lambda severity=severity: [np.asarray(function(Image.fromarray(p), severity), float) for p in pictures]
    other, their_seconds = _timed(their_call)
    change = lambda found: float(np.abs(found - pictures / 255).mean())
    rows.append(
      _row(kind, f"mean change, severity {severity}", change(mine), change(other / 255), (seconds, their_seconds))
    )
  return rows


def rows(arguments: argparse.Namespace) -> list[dict]:
  """For each kind, the mean change by severity, ours and theirs, and the largest difference with the same draws.

  Args:
    arguments: `make_cifar_c`, the path of that file, or "" for no rows; `num_images`.

  Returns:
    Rows of "attack", "reference", "measure", "ours", "theirs", "seconds_ours" and "seconds_theirs" for all images. The
    largest difference is in levels of 255; it is 1 if the original rounds down.
  """
  if not arguments.make_cifar_c:
    return []
  path, pictures, found = Path(arguments.make_cifar_c).resolve(), images(arguments.num_images), []
  with contextlib.chdir(path.parent):  # where the original finds its photographs of frost
    for kind, function in published(path).items():
      found += _mean_changes(kind, function, pictures)
      if kind in SHARED or kind in FIXED:
        pairs = [(ours(kind, s, p), theirs(function, kind, s, p)) for s in SEVERITIES for p in pictures[:3]]
        largest = max(float(255 * np.abs(mine - other).max()) for mine, other in pairs)
        found.append(_row(kind, "largest difference of 255, the same draws", largest, 0.0, (None, None)))
  return found
