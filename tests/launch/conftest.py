"""The folder in which tests run the scripts of `launch/`."""

import pytest

from tests.launch.stubs import Stage


@pytest.fixture
def stage(tmp_path):
  """A folder with stubs for the programs that tpu_vm.sh calls."""
  return Stage(tmp_path, "gcloud git tar python")
