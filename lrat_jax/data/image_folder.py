"""Folders of pictures to evaluate on: a folder for each class, or one folder with labels.csv."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from lrat_jax.data.npz_idx import DataError, reason

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
LABELS = "labels.csv"


def _by_folder(directory: Path) -> tuple[list[tuple[Path, int]], int]:
  """The pictures in the folders of the classes, which are numbered in the order of their names."""
  classes = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
  found = [
    (path, label)
    for label, folder in enumerate(classes)
    for path in sorted(folder.iterdir())
    if path.suffix.lower() in _ENDINGS
  ]
  return found, len(classes)


def _by_table(directory: Path) -> list[tuple[Path, int]]:
  """The pictures that labels.csv names, in its order: two columns, "file" and "label"."""
  with (directory / LABELS).open(newline="", encoding="utf-8") as file:
    reader = csv.DictReader(file)
    if not {"file", "label"} <= set(reader.fieldnames or ()):
      raise DataError(f"{LABELS} has the columns {reader.fieldnames}; it needs file and label.")
    found = []
    for row in reader:
      label = str(row["label"]).strip()
      if not label.isdecimal():
        raise DataError(f"{LABELS}, line {reader.line_num}: label {label!r} is no number of 0 or more.")
      path = directory / str(row["file"])
      if not path.is_file():
        raise DataError(f"{LABELS}, line {reader.line_num}: there is no {row['file']!r}.")
      found.append((path, int(label)))
  return found


def _read_picture(path: Path) -> np.ndarray:
  """uint8 [h, w, 1] of a grey picture, [h, w, 3] of any other; transparency is dropped."""
  try:
    with Image.open(path) as picture:
      grey = picture.mode in ("1", "L")
      pixels = np.asarray(picture.convert("L" if grey else "RGB"))
  except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
    raise DataError(f"{path.name} cannot be read: {reason(error)}") from None
  return pixels[..., None] if grey else pixels


def read(directory: Path) -> tuple[np.ndarray, np.ndarray, int | None]:
  """The pictures of a folder, uint8 [n, h, w, c], their labels int [n], and the number of classes.

  Either there is a folder for each class, numbered from 0 in the order of their names (as torchvision's ImageFolder
  does), or labels.csv gives "file" and "label" of each picture; then the number of classes is unknown.

  Raises:
    DataError: no such folder, no pictures, pictures of several sizes, or one that cannot be read.
  """
  try:
    found, num_classes = (_by_table(directory), None) if (directory / LABELS).is_file() else _by_folder(directory)
  except OSError as error:
    raise DataError(f"the folder cannot be read: {reason(error)}") from None
  if not found:
    raise DataError(f"it holds no pictures: give a folder for each class, or {LABELS} with the columns file and label.")
  pictures = [_read_picture(path) for path, _ in found]
  shapes = {picture.shape: path.name for (path, _), picture in zip(found, pictures, strict=True)}
  if len(shapes) > 1:
    (one, first), (other, second) = list(shapes.items())[:2]
    raise DataError(f"pictures differ in size: {first} is {one}, {second} {other}; bring them to one size.")
  return np.stack(pictures), np.array([label for _, label in found]), num_classes
