"""Pictures, encoded as JPEG, PNG or the like, as arrays of one size: decoded in threads, resized, cropped."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from lrat_jax.data.npz_idx import DataError, reason
from lrat_jax.data.streams import Loading, Moment, Threads, empty_images

_GREY = ("1", "L")
# The centre that is evaluated is so much of the shorter side, as 224 pixels of 256.
_CENTRE = 224 / 256
# Width by height of random crops, and how often one is drawn until it fits into the picture.
_ASPECTS = 3 / 4, 4 / 3
_TRIES = 10


def centre(picture: Image.Image, size: int) -> Image.Image:
  """The middle [size, size] of a picture whose shorter side is brought to `size` * 256 / 224."""
  shorter = round(size / _CENTRE)
  scale = shorter / min(picture.size)
  width, height = (max(round(side * scale), shorter) for side in picture.size)
  left, top = (width - size) // 2, (height - size) // 2
  return picture.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def random_box(width: int, height: int, smallest: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
  """Where a random crop lies: (left, top, right, bottom) of Inception's (Szegedy et al. 2015, arXiv:1409.4842).

  Its area is a share of the picture's in [smallest, 1], its width by its height in [3/4, 4/3], uniform in the
  logarithm. A picture too long for any is cropped to its middle.
  """
  for _ in range(_TRIES):
    area = width * height * generator.uniform(smallest, 1)
    aspect = math.exp(generator.uniform(math.log(_ASPECTS[0]), math.log(_ASPECTS[1])))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      left, top = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
      return left, top, left + w, top + h
  w, h = min(width, round(height * _ASPECTS[1])), min(height, round(width / _ASPECTS[0]))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def _random_crop(picture: Image.Image, size: int, smallest: float, number: int, moment: Moment) -> Image.Image:
  generator = np.random.default_rng((*moment, number))
  box = random_box(*picture.size, smallest, generator)
  return picture.resize((size, size), Image.Resampling.BILINEAR, box=box)


class Pictures:
  """Records that are encoded pictures, grey or in colour as the first one is; transparency is dropped.

  Args:
    count: how many there are, 1 or more.
    open_picture: a number -> the picture, of which nothing need be decoded yet.
    name: a number -> what it is called where it is damaged, as its file.
    loading: how large they become, and how they are cropped.
    channels: 1 or 3; by default those of the first.

  Raises:
    DataError: one cannot be read, is in colour where the first is grey, or has another size where none is given.
  """

  def __init__(
    self,
    count: int,
    open_picture: Callable[[int], Image.Image],
    name: Callable[[int], str],
    loading: Loading,
    channels: int | None = None,
  ):
    self._open, self._name, self._loading, self._channels = open_picture, name, loading, channels
    self._threads = Threads(loading.workers)
    self.shape = (count, *self._decode(0, None).shape)
    self._channels = self.shape[-1]

  def read(self, numbers: np.ndarray, moment: Moment | None = None) -> np.ndarray:
    """uint8 [k, h, w, c]; the crop of a picture depends on the moment and its number alone."""
    images = empty_images((len(numbers), *self.shape[1:]))

    def decode(place: int) -> None:
      pixels = self._decode(int(numbers[place]), moment)
      if pixels.shape != self.shape[1:]:
        raise DataError(
          f"pictures differ in size: {self._name(0)} is {self.shape[1:]}, {self._name(int(numbers[place]))} "
          f"{pixels.shape}; bring them to one size, as data.image_size does."
        )
      images[place] = pixels

    self._threads.for_each(len(numbers), decode)
    return images

  def _decode(self, number: int, moment: Moment | None) -> np.ndarray:
    size, smallest = self._loading.image_size, self._loading.random_resized_crop
    try:
      with self._open(number) as picture:
        grey = picture.mode in _GREY if self._channels is None else self._channels == 1
        if grey and self._channels is not None and picture.mode not in _GREY:
          raise DataError(f"it is in colour (mode {picture.mode}), where {self._name(0)} is grey")
        mode = "L" if grey else "RGB"
        if picture.mode == mode:
          picture.load()  # where nothing is to be converted, convert() copies
        else:
          picture = picture.convert(mode)
    except Exception as error:  # damaged bytes make Pillow and readers of records raise almost anything
      raise DataError(f"record {number}: {self._name(number)} cannot be read: {reason(error)}") from None
    if size and smallest and moment is not None:
      picture = _random_crop(picture, size, smallest, number, moment)
    elif size:
      picture = centre(picture, size)
    pixels = np.asarray(picture)
    return pixels[..., None] if grey else pixels
