"""Pictures encoded as JPEG, PNG or similar, as arrays of one size: decoded in threads, resized, cropped."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from lrat_jax.data.npz_idx import DataError, reason
from lrat_jax.data.streams import Loading, Moment, Threads, empty_images

_GREY = ("1", "L")
# The centre crop for evaluation is this share of the shorter side: 224 pixels of 256.
_CENTRE = 224 / 256
# The range of width / height of random crops, and the maximal number of draws until one fits into the picture.
_ASPECTS = 3 / 4, 4 / 3
_TRIES = 10


def centre(picture: Image.Image, size: int) -> Image.Image:
  """The centre crop [size, size] of a picture, whose shorter side is first resized to `size` * 256 / 224.

  A picture of that size already is not changed.
  """
  if picture.size == (size, size):
    return picture
  shorter = round(size / _CENTRE)
  scale = shorter / min(picture.size)
  width, height = (max(round(side * scale), shorter) for side in picture.size)
  left, top = (width - size) // 2, (height - size) // 2
  return picture.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def random_box(width: int, height: int, smallest: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
  """The box (left, top, right, bottom) of a random crop as in Inception (Szegedy et al. 2015, arXiv:1409.4842).

  Its area is a share of the picture's in [smallest, 1]; width / height is in [3/4, 4/3], uniform in the logarithm. If
  no draw fits, it is the largest box in the middle with width / height in that range.
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
  """Records that are encoded pictures; all become grey or colour like the first one. Transparency is dropped.

  Args:
    count: the number of pictures, 1 or more.
    open_picture: number -> picture, which need not be decoded yet.
    name: number -> the picture's name in error messages, such as its file.
    loading: how pictures are resized and cropped.
    channels: 1 or 3; by default those of the first picture.

  Raises:
    DataError: a picture cannot be read, is in colour but the first is grey, or differs in size from the first and no
      `image_size` is given.
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
    """uint8 [k, h, w, c]; the crop of a picture depends only on the moment and the picture's number."""
    images = empty_images((len(numbers), *self.shape[1:]))

    def decode(place: int) -> None:
      pixels = self._decode(int(numbers[place]), moment)
      if pixels.shape != self.shape[1:]:
        raise DataError(
          f"pictures differ in size: {self._name(0)} is {self.shape[1:]}, {self._name(int(numbers[place]))} "
          f"is {pixels.shape}; set data.image_size to resize them to one size."
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
          raise DataError(f"it is in colour (mode {picture.mode}), but {self._name(0)} is grey")
        mode = "L" if grey else "RGB"
        if picture.mode == mode:
          picture.load()  # convert() would copy, although nothing is to be converted
        else:
          picture = picture.convert(mode)
    except Exception as error:  # for damaged bytes, Pillow and record readers may raise almost any exception
      raise DataError(f"record {number}: {self._name(number)} cannot be read: {reason(error)}") from None
    if size and smallest and moment is not None:
      picture = _random_crop(picture, size, smallest, number, moment)
    elif size:
      picture = centre(picture, size)
    pixels = np.asarray(picture)
    return pixels[..., None] if grey else pixels
