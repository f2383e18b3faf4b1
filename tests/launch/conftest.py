"""Where the scripts of `launch/` run in tests."""

import pytest

from tests.launch.stubs import Stage


@pytest.fixture
def stage(tmp_path):
  """A folder with stand-ins for what tpu_vm.sh calls."""
  return Stage(tmp_path, "gcloud git tar python")
