"""A quarter of an hour on an accelerator: does it run, how fast, and what does a first CIFAR-10 run show.

    python -m benchmarks.accelerator_session --minutes=9 --data_dir=DIR --out=DIR
    python -m benchmarks.accelerator_session --trial --minutes=8 --out=DIR      small, on any machine
    python -m benchmarks.accelerator_session --methods at_union lrat_union --data_dir=DIR --out=DIR
    python -m benchmarks.accelerator_session --load=DIR --data_dir=DIR          evaluates the weights of a session again

Each part runs in its own process with a share of the time. A part that fails or runs out of time is one line in
`table.md`, and the next part starts. Every record is written to disk as soon as it is measured, and `table.md` is
rewritten with it. No network is needed. `--out` gets at most 8 files of at most 15 MiB each: `table.md`,
`records.json` and the trained weights.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.accelerator_session import table
from benchmarks.accelerator_session.session import METHODS, Session, read_records

# Seconds that are reserved for stopping a part and writing the last table.
_RESERVE = 6


class Part(NamedTuple):
  """A part of the session: a module of this package with `run(session)`."""

  name: str
  share: float
  needs_images: bool = False


PARTS = (
  Part("correctness", 0.18),
  Part("speed", 0.31),
  Part("training", 0.28, needs_images=True),
  Part("evaluation", 0.13, needs_images=True),
  Part("autoattack", 0.10, needs_images=True),
)


def _run_part(part: Part, session: Session, log: Path, update) -> str:
  """Runs a part until it ends or its deadline passes; returns its status."""
  environment = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(Path(session.scratch) / "compiled"),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # PyTorch uses the same device
  }
  if session.trial and part.name != "autoattack":  # only there does running take longer than compiling
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
  command = [sys.executable, "-m", "benchmarks.accelerator_session.part", json.dumps(session._asdict())]
  with log.open("ab") as errors:
    process = subprocess.Popen(command, env=environment, stdout=errors, stderr=errors, start_new_session=True)
  try:
    while process.poll() is None and session.left() > 0:
      time.sleep(0.5)
      update("running")
  finally:
    stopped = process.poll() is None
    if stopped:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
  if stopped:
    return "stopped: its time was over"
  if process.returncode == 0:
    return "done"
  lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["no word"]
  return lines[-1] if lines[-1].startswith("left out: ") else f"failed ({process.returncode}): {lines[-1][:300]}"


def _title(options: argparse.Namespace) -> str:
  kind = "Trial of a session" if options.trial else "A session"
  return f"{kind} of {options.minutes:g} minutes, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC"


def run(options: argparse.Namespace) -> None:
  """Runs the parts one after the other; time that a part does not use is left to the others."""
  end = time.time() + 60 * options.minutes - _RESERVE
  options.out.mkdir(parents=True, exist_ok=True)
  scratch = (options.scratch or Path(tempfile.mkdtemp(prefix="accelerator_session_"))).absolute()
  scratch.mkdir(parents=True, exist_ok=True)
  source = "tfds:cifar10" if options.data_dir else "digits"
  status, title = [], _title(options)
  parts = [part for part in PARTS if part.name in options.parts]
  log = scratch / "log"
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  for index, part in enumerate(parts):
    row = {"part": part.name, "seconds": 0.0, "what became of it": "running"}
    status.append(row)
    start = time.time()
    seen = -1

    def update(what: str, row=row, start=start) -> None:
      nonlocal seen
      row |= {"seconds": round(time.time() - start, 1), "what became of it": what}
      count = len(read_records(scratch))
      if count != seen or what != "running":
        table.write(options.out, scratch, title, options.trial, status)
        seen = count

    if part.needs_images and source == "digits" and not options.trial:
      update("left out: no --data_dir")
      continue
    left = end - start
    budget = left * part.share / sum(later.share for later in parts[index:])
    if left < 5:
      update("left out: no time was left")
      continue
    session = Session(
      part.name, str(options.out.absolute()), str(scratch), source, options.data_dir, options.trial,
      start + budget, str(options.auto_attack.absolute()) if options.auto_attack else "",
      tuple(options.methods),
    )  # fmt: skip
    update("running")
    try:
      update(_run_part(part, session, log, update))
    except SystemExit:
      update("stopped from outside")
      raise
    print(f"{part.name}: {row['what became of it']} ({row['seconds']} s)", flush=True)
  print(f"{options.out / 'table.md'} has the tables; {log} what the parts printed.")


def _options(arguments=None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  names = [part.name for part in PARTS]
  parser.add_argument("--minutes", type=float, default=9.0, help="the whole session ends in that time")
  parser.add_argument("--out", type=Path, help="the folder for table.md, records.json and the weights")
  parser.add_argument(
    "--data_dir", default="", help="where TFDS keeps CIFAR-10, prepared; a trial takes digits without"
  )
  parser.add_argument("--scratch", type=Path, help="a folder for all other files; records already in it are kept")
  parser.add_argument("--parts", nargs="+", choices=names, default=names)
  parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="to train, in order")
  parser.add_argument("--trial", action="store_true", help="small networks and few steps")
  parser.add_argument("--auto_attack", type=Path, help="a clone of the original AutoAttack, to be timed beside ours")
  parser.add_argument("--load", type=Path, help="evaluates the weights in a session's folder on this machine")
  parser.add_argument("--attacks", nargs="+", default=[], help="with --load: these rows of the session's table alone")
  parser.add_argument("--num_images", type=int, default=0, help="with --load: the first so many images")
  options = parser.parse_args(arguments)
  if (options.out is None) == (options.load is None):
    parser.error("give either --out=DIR, for a session, or --load=DIR, for the weights of one.")
  if options.load and not (options.load / "records.json").is_file():
    parser.error(f"--load={options.load} holds no records.json of a session.")
  if options.auto_attack and not (options.auto_attack / "autoattack").is_dir():
    parser.error(f"--auto_attack={options.auto_attack} holds no folder autoattack; clone github.com/fra31/auto-attack.")
  if options.minutes * 60 <= _RESERVE:
    parser.error(f"--minutes={options.minutes:g} is no time for a session.")
  return options


def main() -> None:
  options = _options()
  if options.load:
    from benchmarks.accelerator_session import reload  # imports JAX, which a session's parent process never does

    reload.evaluate(options.load, options.data_dir, options.attacks, options.num_images)
  else:
    run(options)


if __name__ == "__main__":
  main()
