"""Pictures that are drawn in a thread: waited for, and their failures are the run's."""

import threading

import pytest

from lrat_jax import run


def test_pictures_are_drawn_beside_what_is_inside_and_waited_for():
  begun, may_end, drawn = threading.Event(), threading.Event(), []

  def draw():
    begun.set()
    assert may_end.wait(10)
    drawn.append(True)

  with run._drawing(draw) as wait:
    assert begun.wait(10) and not drawn
    may_end.set()
    wait()
    assert drawn


def test_a_picture_that_fails_is_the_runs_error():
  def fail():
    raise OSError("disk full")

  with pytest.raises(OSError, match="disk full"), run._drawing(fail) as wait:
    wait()


def test_without_pictures_there_is_nothing_to_wait_for():
  with run._drawing(None) as wait:
    wait()
