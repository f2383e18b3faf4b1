"""Untrusted data files: any bytes give a data set or a one-line error; no code is run and little memory is used."""

import gzip
import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lrat_jax import data
from lrat_jax.data import tfds

GENERATOR = np.random.default_rng(0)
ARRAYS = {
  "train_images": GENERATOR.integers(0, 256, (9, 3, 2), np.uint8),
  "train_labels": np.arange(9) % 3,
  "test_images": GENERATOR.integers(0, 256, (3, 3, 2), np.uint8),
  "test_labels": np.array([2, 1, 0]),
}
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IDX = dict(zip(NAMES, ARRAYS.values(), strict=True))


def npy(array, **options):
  file = io.BytesIO()
  np.lib.format.write_array(file, np.asanyarray(array), **options)
  return file.getvalue()


def header(descr, shape, body=b""):
  """An array file whose header has the given type and shape, whatever the body."""
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
  return file.getvalue() + body


def raw_header(text, size=None, version=b"\1\0"):
  length = struct.pack("<H" if version == b"\1\0" else "<I", len(text) if size is None else size)
  return b"\x93NUMPY" + version + length + text


def archive(members=(), compression=zipfile.ZIP_STORED, **changes):
  """An npz of the arrays, with some members' bytes changed and others added."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", compression) as target:
    for name, content in {**{name: npy(array) for name, array in ARRAYS.items()}, **changes}.items():
      target.writestr(f"{name}.npy", content)
    for name, content in members:
      target.writestr(name, content)
  return file.getvalue()


def idx(array, magic=None, shape=None):
  shape = array.shape if shape is None else shape
  return (
    bytes(magic or (0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + array.astype(np.uint8).tobytes()
  )


def load(source):
  """The data set, or the one-line error."""
  try:
    return data.load(source, validation_size=2)
  except data.DataError as error:
    assert len(str(error).splitlines()) == 1 and len(str(error)) < 600 + len(source) and "data.source=" in str(error)
    return str(error)


def load_npz(folder, content):
  (folder / "x.npz").write_bytes(content)
  return load(f"npz:{folder}/x.npz")


def load_idx(folder, suffix="", **contents):
  for name, array in IDX.items():
    content = contents.get(name, idx(array))
    (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix and name not in contents else content)
  return load(f"idx:{folder}")


def assert_same(dataset):
  """Asserts that the data are unchanged, which the checksums of a file must guarantee."""
  for split, part in ((dataset.train, "train"), (dataset.validation, "train"), (dataset.test, "test")):
    np.testing.assert_array_equal(split.images[..., 0], ARRAYS[f"{part}_images"][split.indices])
    np.testing.assert_array_equal(split.labels, ARRAYS[f"{part}_labels"][split.indices])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("files")


@pytest.fixture(params=[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"], scope="module")
def whole(request):
  return archive(compression=request.param)


def test_a_whole_file_is_read(folder, whole):
  assert_same(load_npz(folder, whole))
  assert_same(load_idx(folder))


def test_an_npz_cut_anywhere_is_one_line(folder, whole):
  for length in range(0, len(whole), 3):
    assert isinstance(load_npz(folder, whole[:length]), str)


@given(flips=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 7)), min_size=1, max_size=4))
def test_an_npz_with_wrong_bits_is_one_line_or_still_the_same_data(folder, whole, flips):
  content = bytearray(whole)
  for place, bit in flips:
    content[place % len(content)] ^= 1 << bit
  result = load_npz(folder, bytes(content))
  if not isinstance(result, str):
    assert_same(result)


@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda tail: b"PK\3\4" + tail))
def test_an_npz_of_any_bytes_is_one_line(folder, content):
  assert isinstance(load_npz(folder, content), str)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(b"(" * 9000)
@example(b"-" * 9000 + b"1")
@example(b"{'descr': '|u1', 'fortran_order': False, 'shape': (9, 3, 2), 'shape': 3}")
@example(b"{'descr': '|u1', 'fortran_order': False, 'shape': (True, 3, 2)}")
@example(b"__import__('os').abort()")
def test_an_array_with_any_header_is_one_line(folder, text):
  assert isinstance(load_npz(folder, archive(train_images=raw_header(text))), str)
  assert isinstance(load_npz(folder, archive(train_images=raw_header(text, version=b"\2\0"))), str)


class _Touches:
  """Creates a folder when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["array", "member", "npy", "pickle"])
def test_nothing_in_a_file_is_run(tmp_path, kind):
  objects = np.array([_Touches(tmp_path / "made")] * 9)
  content = {
    "array": lambda: archive(train_labels=npy(objects, allow_pickle=True)),
    "member": lambda: archive(train_images=pickle.dumps(objects)),
    "npy": lambda: npy(objects, allow_pickle=True),
    "pickle": lambda: pickle.dumps(objects),
  }[kind]()
  assert isinstance(load_npz(tmp_path, content), str)
  assert not (tmp_path / "made").exists()
  pickle.loads(pickle.dumps(objects))
  assert (tmp_path / "made").exists()


def _bomb():
  """An npz of a hundred kilobytes with a hundred megabytes of zeros."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
    for name, array in ARRAYS.items():
      with target.open(f"{name}.npy", "w") as member:
        member.write(header("|u1", (10**8, 1, 1)) if name == "train_images" else npy(array))
        for _ in range(100 if name == "train_images" else 0):
          member.write(bytes(10**6))
  return file.getvalue()


BOMBS = {
  "a header of terabytes": (lambda: archive(train_images=header("|u1", (10**12, 8, 8))), "says 64,000,000,000,000"),
  "a header beyond all numbers": (lambda: archive(train_images=header("<f8", (10**18, 10**18, 8))), "contains 0 bytes"),
  "a type of gigabytes": (lambda: archive(train_images=header(("<f8", (10**8,)), (9, 3, 2))), "contains 0 bytes"),
  "a header as long as a disk": (lambda: archive(train_images=raw_header(b"{", 2**31, b"\2\0")), "cannot be read"),
  "zeros": (_bomb, "claim to contain arrays of 100,0"),
  "zeros by bzip2": (
    lambda: archive(compression=zipfile.ZIP_BZIP2, train_images=header("|u1", (10**7, 1, 1), bytes(10**7))),
    "in a way that np.savez does not use",
  ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_memory_is_taken_for_what_a_file_cannot_hold(folder, name):
  make, message = BOMBS[name]
  content = make()
  tracemalloc.start()
  result = load_npz(folder, content)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert message in result and peak < 4e6


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (archive([("train_labelz.npy", npy(np.arange(9)))]).replace(b"labelz", b"labels"), "twice"),
    (archive(train_labels=npy(np.arange(9) * 2**40)), "labels range from 0 to 8796093022208"),
    (archive(train_labels=npy(np.arange(9).astype(np.uint64) + 2**63)), "labels range from 9223372036854775808"),
    (archive(train_labels=npy(np.arange(9) * 1000)), "labels go up to 8000, but there are only 9 images"),
    (archive(train_labels=npy(np.arange(9) % 2 > 0)), "labels are bool; they must be integers"),
    (archive(train_labels=npy(np.zeros(0, int))), r"have shape (0,)"),
    (archive(train_images=npy(np.zeros((9, 3, 2), complex))), "are complex128"),
    (archive(train_images=npy(np.zeros((9, 3, 2), bool))), "images are bool; they must be uint8"),
    (archive(train_images=npy(np.where(np.arange(54).reshape(9, 3, 2) == 7, np.nan, 0.5))), "floats from nan"),
    (archive(train_images=npy(np.where(np.arange(54).reshape(9, 3, 2) == 7, np.inf, 0.5))), "to inf"),
    (archive(train_images=npy(np.zeros((0, 3, 2), np.uint8))), "without a size of 0"),
    (archive(train_images=header("|u1", (10**12, 0, 2))), "without a size of 0"),
    (archive(train_images=header("|u1", (-9, 3, 2), bytes(54))), "says -54"),
    (archive(train_images=header("|u1", (1,) * 65, b"0")), "cannot be read"),
    (archive(train_images=b"hello"), "cannot be read"),
    (npy(ARRAYS["train_images"]), "not a zip file"),
  ],
)  # fmt: skip
def test_what_is_no_data_set_is_named(folder, content, message):
  assert message in load_npz(folder, content)


def test_names_in_an_archive_lead_nowhere(tmp_path):
  (tmp_path / "a").mkdir()
  outside = [("../../evil.npy", npy(np.arange(3))), ("/tmp/evil.npy", npy(np.arange(3)))]
  assert_same(load_npz(tmp_path / "a", archive(outside)))
  assert [path.name for path in tmp_path.rglob("*")] == ["a", "x.npz"]
  assert "it contains" in load_npz(tmp_path / "a", archive().replace(b"_images", b"\n/..//x"))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_file_cut_anywhere_is_one_line(tmp_path, suffix):
  name = "train-images-idx3-ubyte"
  content = gzip.compress(idx(IDX[name])) if suffix else idx(IDX[name])
  for length in range(len(content)):
    assert isinstance(load_idx(tmp_path, suffix, **{name: content[:length]}), str)
  assert_same(load_idx(tmp_path, suffix, **{name: content}))


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: b"\0\0\x08" + tail), st.booleans())
@example(bytes([0, 0, 8, 255]) + b"\0\0\0\1" * 255 + b"x", False)
@example(bytes([0, 0, 8, 3]) + b"\0\0\0\1" * 2 + b"\0\0", False)
@example(bytes([0, 0, 8, 3]) + b"\xff" * 12, True)
@example(bytes([0, 0, 8, 0]) + b"x", False)
def test_an_idx_file_of_any_bytes_is_one_line(tmp_path_factory, content, compressed):
  folder = tmp_path_factory.mktemp("idx")
  content = gzip.compress(content) if compressed else content
  result = load_idx(folder, ".gz" if compressed else "", **{"t10k-images-idx3-ubyte": content})
  assert isinstance(result, str)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
  ("content", "message"),
  [
    (idx(np.zeros(0, np.uint8), shape=(2**32 - 1,) * 3), "claim to contain arrays of 79,228,162"),
    (idx(np.zeros(10**8, np.uint8), shape=(10**4, 100, 100)), None),
  ],
  ids=["claimed", "held"],
)
def test_no_memory_is_taken_for_what_an_idx_file_cannot_hold(tmp_path, suffix, content, message):
  content = gzip.compress(content, 9) if suffix else content
  tracemalloc.start()
  result = load_idx(tmp_path, suffix, **{"train-images-idx3-ubyte": content})
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  if message is None and not suffix:  # a large file whose header is true
    assert "training labels have shape" in result
  else:
    assert (message or "claim to contain arrays of 100,000,000") in result and peak < 4e6


@given(st.sampled_from(["npz:", "idx:", "tfds:", "digits:x", ""]), st.text(max_size=50))
@example("npz:", "x" * 5000)
@example("idx:", "x" * 5000)
@example("npz:", "a\nb")
@example("npz:", "\0")
@example("npz:", ".")
@example("tfds:", "../x")
@example("tfds:", "huggingface:x/y")
@example("tfds:", "mnist/../../x")
def test_a_source_of_any_name_is_one_line(kind, name):
  assert isinstance(load(kind + name), str)


@pytest.mark.parametrize("field", ["pythonClassName", "type"])
def test_prepared_data_import_no_module_that_they_name(tmp_path, field, monkeypatch):
  (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')")
  monkeypatch.syspath_prepend(tmp_path)
  version = tmp_path / "mine" / "1.0.0"
  version.mkdir(parents=True)
  feature = {field: "planted.Feature", "content": {}}
  nested = f'{{"pythonClassName": "tensorflow_datasets.core.features.x", "a": [{feature}]}}'.replace("'", '"')
  (version / "features.json").write_text(nested)
  (version / "dataset_info.json").write_text('{"name": "mine", "version": "1.0.0"}')
  with pytest.raises(data.DataError, match="names the Python class 'planted.Feature'"):
    tfds.read("mine", str(tmp_path))
  assert not (tmp_path / "made").exists()
