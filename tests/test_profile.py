"""The profile of a run: steps, attacks and stages have the names that users know."""

import pytest

from lrat_jax import main
from tests.helpers import SMALL


@pytest.mark.slow
def test_a_profile_names_steps_attacks_and_stages(tmp_path):
  fields = SMALL | {"train.epochs": 1, "eval.num_images": 64, "optimizer.learning_rate": 1.0}
  arguments = ["--config=lrat:digits,suite=apgd", *(f"--config.{name}={value}" for name, value in fields.items())]
  assert main.main([*arguments, f"--workdir={tmp_path / 'run'}", f"--profile={tmp_path / 'trace'}"]) == 0
  (trace,) = (tmp_path / "trace").rglob("*.xplane.pb")
  recorded = trace.read_bytes()
  assert all(name in recorded for name in (b"train", b"pgd20", b"apgd-ce", b"apgd-t"))
