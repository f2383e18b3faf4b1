"""Reads arrays from untrusted npz, npy and idx files: implausible sizes are refused, and no code in a file is run.

Pickled objects are refused, names inside an archive are only looked up and never used as paths, and sizes are checked
against the file before memory is allocated.
"""

import gzip
import math
import reprlib
import struct
import textwrap
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np

# Images and labels compress to a tenth of their size at best; a file that claims a higher ratio than this is refused.
_PLAUSIBLE_RATIO = 200
_SMALL = 2**26

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

# The header of a member of an archive: 26 bytes, 4 of them magic, then the sizes of its name and of an extra field.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LOCAL_MAGIC = b"PK\3\4"

_IDX_UNSIGNED_BYTE = 8
_IDX_MOST_AXES = 4


class DataError(ValueError):
  """A data set is missing or malformed; the message is one line that says what is wrong and where."""


def reason(error: Exception) -> str:
  """The message of an exception, in one line of limited length."""
  return textwrap.shorten(str(error), 200) or type(error).__name__


def _check_inflation(claimed: int, stored: int) -> None:
  if claimed > max(_SMALL, _PLAUSIBLE_RATIO * stored):
    raise DataError(f"{stored:,} bytes claim to contain arrays of {claimed:,}; if they do, store them uncompressed.")


def _read_header(info: zipfile.ZipInfo, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
  """Shape, whether the order is Fortran's, and dtype of an array; `file` is left at the start of the array's values."""
  version = np.lib.format.read_magic(file)
  if version not in _NPY_HEADERS:
    raise DataError(f"{info.filename} has version {version} of the npy format; it must be one of {[*_NPY_HEADERS]}.")
  start = file.tell()
  shape, fortran_order, dtype = _NPY_HEADERS[version](file)
  if dtype.hasobject:
    raise DataError(f"{info.filename} contains Python objects, which are never loaded.")
  header = file.tell() - start + np.lib.format.MAGIC_LEN
  if (needed := math.prod(shape) * dtype.itemsize) != (there := info.file_size - header):
    raise DataError(f"{info.filename} contains {there:,} bytes, but its header, {dtype} {shape}, says {needed:,}.")
  return shape, fortran_order, dtype


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
  """Reads one array of an npz and checks its checksum. Raises DataError for formats that `np.savez` does not write."""
  if info.compress_type not in _COMPRESSIONS or info.flag_bits & _ENCRYPTED:
    raise DataError(f"{info.filename} is encrypted or compressed in a way that np.savez does not use.")
  with archive.open(info) as file:
    shape, fortran_order, dtype = _read_header(info, file)
    return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran_order else "C")


def _map_member(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
  """Maps one uncompressed array of an npz, without reading it yet; its checksum is not checked."""
  with path.open("rb") as file:
    file.seek(info.header_offset)
    fixed = file.read(_LOCAL_HEADER.size)
    magic, name_size, extra_size = _LOCAL_HEADER.unpack(fixed)
    if magic != _LOCAL_MAGIC:
      raise DataError(f"{info.filename} does not begin where the archive says; it is damaged.")
    file.seek(name_size + extra_size, 1)
    shape, fortran_order, dtype = _read_header(info, file)
    return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran_order else "C")


def _members(archive: zipfile.ZipFile, choices: Sequence[Sequence[str]]) -> list[zipfile.ZipInfo]:
  """The members with the arrays of the first list of names in `choices` that the archive has completely."""
  infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
  found = [info.filename.removesuffix(".npy") for info in infos]
  names = next((names for names in choices if set(names) <= set(found)), None)
  if names is None:
    raise DataError(f"it contains {reprlib.repr(sorted(found))}; it needs the arrays {list(choices[0])}.")
  wanted = [[info for info, name in zip(infos, found, strict=True) if name == wanted] for wanted in names]
  if any(len(same) > 1 for same in wanted):
    raise DataError(f"it contains one of the arrays {list(names)} twice.")
  return [info for (info,) in wanted]


def _read_npz(path: Path, choices: Sequence[Sequence[str]]) -> list[np.ndarray]:
  with zipfile.ZipFile(path) as archive:
    wanted = _members(archive, choices)
    _check_inflation(sum(info.file_size for info in wanted), path.stat().st_size)
    return [_read_member(archive, info) for info in wanted]


def read_npz(path: Path, choices: Sequence[Sequence[str]]) -> list[np.ndarray]:
  """Reads the arrays of the first list of names in `choices` that an archive, as written by `np.savez`, has completely.

  Raises:
    DataError: the file is damaged, lacks the arrays, holds Python objects, or claims more than it can hold.
  """
  try:
    return _read_npz(path, choices)
  except DataError:
    raise
  except Exception as error:  # for damaged bytes, zipfile and NumPy's header reader may raise almost any exception
    raise DataError(f"it cannot be read: {reason(error)}") from None


def _map_npz(path: Path, choices: Sequence[Sequence[str]]) -> list[np.ndarray]:
  with zipfile.ZipFile(path) as archive:
    wanted = _members(archive, choices)
    is_stored = [info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & _ENCRYPTED for info in wanted]
    whole = [info for info, stored in zip(wanted, is_stored, strict=True) if not stored]
    _check_inflation(sum(info.file_size for info in whole), path.stat().st_size)
    return [
      _map_member(path, info) if stored else _read_member(archive, info)
      for info, stored in zip(wanted, is_stored, strict=True)
    ]


def map_npz(path: Path, choices: Sequence[Sequence[str]]) -> list[np.ndarray]:
  """The arrays that `read_npz` reads, as `np.memmap` if they are not compressed; others are read into memory.

  Raises:
    DataError: as in `read_npz`, but checksums of mapped arrays are not checked.
  """
  try:
    return _map_npz(path, choices)
  except DataError:
    raise
  except Exception as error:  # as in `read_npz`
    raise DataError(f"it cannot be read: {reason(error)}") from None


def map_npy(path: Path) -> np.ndarray:
  """Maps the array of an npy file as `np.memmap`, without reading it yet.

  Raises:
    DataError: the file is missing, truncated, or holds Python objects.
  """
  try:
    return np.lib.format.open_memmap(path, mode="r")
  except (OSError, ValueError, EOFError) as error:
    raise DataError(f"{path.name} cannot be read: {reason(error)}") from None


def _read_idx(path: Path, file: BinaryIO) -> np.ndarray:
  magic = file.read(4)
  if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _IDX_UNSIGNED_BYTE or not 1 <= magic[3] <= _IDX_MOST_AXES:
    raise DataError(f"it is not an idx file of unsigned bytes: it begins with {magic.hex(' ')!r}.")
  sizes = file.read(4 * magic[3])
  shape = tuple(np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4").tolist())
  needed = math.prod(shape) if len(shape) == magic[3] else -1
  _check_inflation(needed, path.stat().st_size)
  content = file.read(max(needed, 0) + 1)  # one byte more, to detect a file that is too long and check gzip's checksum
  if len(content) != needed:
    there = f"more than {needed:,}" if len(content) > needed else f"{len(content):,}"
    raise DataError(f"it contains {there} bytes, but its header says {shape}; it is truncated or damaged.")
  return np.frombuffer(content, np.uint8).reshape(shape)


def read_idx(path: Path) -> np.ndarray:
  """Reads a uint8 array in MNIST's format: 0, 0, type, rank, then the sizes (big-endian 32 bit), then the bytes.

  A file with the suffix ".gz" is read through gzip.

  Raises:
    DataError: the file is damaged, is of another type, or claims more than it can hold.
  """
  try:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
      return _read_idx(path, cast(BinaryIO, file))
  except (OSError, EOFError, zlib.error, MemoryError) as error:
    raise DataError(f"it cannot be read: {reason(error)}") from None
