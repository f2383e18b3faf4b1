"""Full disks, signals and second processes: a one-line message, and the resumed run ends in the same bits."""

import os
import re
import signal
import subprocess
import sys

from tests import programs, soak


def test_a_full_disk_is_one_line_and_spares_the_checkpoints(tmp_path, whole_run):
  workdir = tmp_path / "run"
  programs.kill_after(workdir, 5, "--mode=train")
  before = {path: path.read_bytes() for path in (workdir / "checkpoints").rglob("*/state/**/*") if path.is_file()}
  # The limit on file size leaves room for the metrics only: to the program, the disk is full.
  code = (
    "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000));"
    "from lrat_jax import main; sys.exit(main.main(sys.argv[1:]))"
  )
  command = [sys.executable, "-c", code, *programs.ARGUMENTS, f"--workdir={workdir}", "--mode=train"]
  # Compiled programs are read from the cache but not written to it.
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000"}
  done = subprocess.run(command, cwd=programs.ROOT, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 4, done.stderr
  # Orbax's threads may print more about it, before and after, even in the middle of one of our lines.
  line = r"error: the checkpoint of step \d+ could not be written: File too large\. .* run the same command again"
  assert len(re.findall(line, done.stderr)) == 1, done.stderr
  assert {path: path.read_bytes() for path in before} == before and before
  programs.finish(workdir, "--mode=train")
  soak.assert_same(whole_run, workdir)


def test_a_second_process_in_a_workdir_is_refused(tmp_path):
  first = programs.start(tmp_path / "run", "--mode=train")
  programs.wait_for_rows(first, tmp_path / "run", 1)
  first.send_signal(signal.SIGSTOP)  # so that it cannot end before the second starts
  code, _, errors = programs.end(programs.start(tmp_path / "run", "--mode=train"))
  first.send_signal(signal.SIGCONT)
  assert code == 2 and "is in use by another process" in errors and errors.count("\n") == 1
  assert programs.end(first)[0] == 0


def test_a_run_that_is_asked_to_stop_saves_says_so_and_ends_in_the_same_bits(tmp_path, whole_run):
  """First with SIGTERM, then with Ctrl-C."""
  for number, rows, lines in ((signal.SIGTERM, 2, 1), (signal.SIGINT, 6, 2)):
    process = programs.start(tmp_path / "run", "--mode=train")
    programs.wait_for_rows(process, tmp_path / "run", rows)
    process.send_signal(number)
    code, _, errors = programs.end(process)
    assert code == 75 and errors.count("\n") == lines and "run the same command again to continue" in errors
  programs.finish(tmp_path / "run", "--mode=train")
  soak.assert_same(whole_run, tmp_path / "run", rows=False)


def test_a_second_ctrl_c_ends_the_program_at_once(tmp_path):
  process = programs.start(tmp_path / "run", "--mode=train")
  programs.wait_for_rows(process, tmp_path / "run", 2)
  process.send_signal(signal.SIGSTOP)  # so that it cannot end between the two signals
  process.send_signal(signal.SIGINT)
  process.send_signal(signal.SIGCONT)
  while "Ctrl-C again" not in process.stderr.readline():
    assert process.poll() is None
  process.send_signal(signal.SIGINT)
  assert process.wait(timeout=60) in (-signal.SIGINT, 75)  # 75 if it had already saved
