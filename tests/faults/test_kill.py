"""Kills without warning: a run that is resumed after them ends in the same bits as a run without kills.

`python -m tests.soak` does the same with any number of kills.
"""

from tests import soak


def test_a_run_killed_at_eight_random_moments_ends_in_the_same_bits(tmp_path):
  report = soak.run(tmp_path, kills=8, seed=0)
  assert sum(report["kills"].values()) == 8 and report["kills"]["while saving"] > 0
  assert report["runs that differ"] == 0 and report["runs"] > 0
