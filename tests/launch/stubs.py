"""Runs the scripts of `launch/` with stubs for gcloud, srun and other programs, which record their calls."""

import os
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

LAUNCH = Path(__file__).parent.parent.parent / "launch"

# In bash, because hundreds of stubs are started. A stub appends its words to $STUB_CALLS and replies from
# $STUB_ANSWERS, with the first entry whose words are all in the call: its n-th call gets its n-th answer, and calls
# after that get its last answer.
STUB = r"""#!/usr/bin/env bash
printf '%s\0' "${0##*/}" "$@" $'\036' >>"$STUB_CALLS"
call="${0##*/} $*"
for name in $STUB_SHOWN; do
  if [[ ${0##*/} == "$name" ]]; then env | grep -E '^(JAX|SRUN)_' | sort; fi
done
fits() {
  local word
  for word in $1; do [[ $call == *"$word"* ]] || return 1; done
}
answer() {
  local counter=$STUB_CALLS.$1 turn=0
  shift
  [[ ! -f $counter ]] || turn=$(<"$counter")
  echo $((turn + 1)) >"$counter"
  ((turn * 2 < $#)) || turn=$(($# / 2 - 1))
  shift $((turn * 2))
  case $2 in
    '') ;;
    wait) sleep 1 ;;
    *) if (($1 == 0)); then echo "$2"; else echo "$2" >&2; fi ;;
  esac
  exit "$1"
}
source "$STUB_ANSWERS"
"""


def _write_answers(answers, path: Path) -> None:
  """Writes a list of (words, [(exit code, output), ...]) in the form that the stubs read."""
  lines = []
  for number, (words, turns) in enumerate(answers):
    said = shlex.join(str(part) for turn in turns for part in turn)
    lines.append(f"if fits {shlex.quote(words)}; then answer {number} {said}; fi\n")
  path.write_text("".join(lines))


class Done(NamedTuple):
  """The result of a script: its exit code, stdout, stderr, and the calls of stubs, each a list of words."""

  code: int
  output: str
  errors: str
  calls: list[list[str]]

  def calls_with(self, *words: str) -> list[list[str]]:
    """The calls whose command line contains all of the given words."""
    return [call for call in self.calls if all(word in " ".join(call) for word in words)]


class Stage:
  """A folder with stubs, which come first on the PATH, and a home folder for the script."""

  def __init__(self, folder: Path, names: str):
    self.home = folder / "home"
    self.programs = folder / "programs"
    self.records = folder / "records"
    for made in (self.home, self.programs, self.records):
      made.mkdir()
    for name in names.split():
      self.add(self.programs / name)

  def add(self, path: Path, text: str = STUB) -> None:
    """Writes a stub, or another program, to a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)

  def prepare(self, answers=(), shown="", **variables: str) -> dict[str, str]:
    """Clears the recorded calls; returns the environment of a script, which inherits only the PATH."""
    for record in self.records.iterdir():
      record.unlink()
    calls, said = self.records / "calls", self.records / "answers"
    calls.touch()
    _write_answers(answers, said)
    path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
    stub = {"STUB_CALLS": str(calls), "STUB_ANSWERS": str(said), "STUB_SHOWN": shown}
    return {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8", **stub, **variables}

  def run(self, *command: str | Path, answers=(), shown="", folder: Path | None = None, **variables: str) -> Done:
    """Runs a command until it exits; `shown` names the stubs that print the variables of JAX and srun."""
    environment = self.prepare(answers, shown, **variables)
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, timeout=60)
    return Done(done.returncode, done.stdout, done.stderr, self.recorded())

  def recorded(self) -> list[list[str]]:
    """The calls since the last `prepare` or `run`."""
    calls = (self.records / "calls").read_text().split("\0\x1e\0")
    return [call.split("\0") for call in calls[:-1]]
