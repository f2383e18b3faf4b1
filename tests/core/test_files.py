"""Files are replaced as a whole: if the block fails, the old file is kept."""

import pytest

from lrat_jax.core import files


def test_a_file_is_replaced_when_its_block_ends(tmp_path):
  path = tmp_path / "a.json"
  for content in (b"old", b"new"):
    with files.replacing(path) as file:
      file.write(content)
    assert path.read_bytes() == content
  assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
  path = tmp_path / "a.json"
  path.write_bytes(b"old")
  with pytest.raises(RuntimeError, match="half"), files.replacing(path) as file:
    file.write(b"ne")
    raise RuntimeError("half")
  assert path.read_bytes() == b"old"
