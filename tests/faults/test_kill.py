"""Kills without warning: a run that goes on after them ends in the bits of one that nobody killed.

`python -m tests.soak` does the same with as many kills as one likes.
"""

from tests import soak


def test_a_run_killed_at_eight_random_moments_ends_in_the_same_bits(tmp_path):
  report = soak.run(tmp_path, kills=8, seed=0)
  assert sum(report["kills"].values()) == 8 and report["kills"]["while saving"] > 0
  assert report["runs that differ"] == 0 and report["runs"] > 0
