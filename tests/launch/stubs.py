"""Runs the scripts of `launch/` among stand-ins for gcloud, srun and the like, which record their calls."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

LAUNCH = Path(__file__).parent.parent.parent / "launch"

# Appends its words to $STUB_CALLS, one JSON list a line, and answers by $STUB_ANSWERS: a list of [words that the call
# contains, [[exit code, output], ...]]. The first entry that fits answers; its n-th call gets its n-th answer, and the
# calls after the last get the last.
STUB = """#!{python} -SE
import json, os, sys, time
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
with open(os.environ["STUB_CALLS"], "a+") as file:
  file.write(json.dumps(call) + chr(10))
  file.seek(0)
  calls = [" ".join(json.loads(line)) for line in file]
if call[0] in os.environ["STUB_SHOWN"].split():
  names = [name for name in sorted(os.environ) if name.startswith(("JAX_", "SRUN_"))]
  print("environment", " ".join(name + "=" + os.environ[name] for name in names), flush=True)
for words, answers in json.loads(os.environ["STUB_ANSWERS"]):
  fitting = sum(all(word in one for word in words.split()) for one in calls)
  if all(word in calls[-1] for word in words.split()):
    code, output = answers[min(fitting, len(answers)) - 1]
    if output == "wait":
      time.sleep(1)
    elif output == "run":
      os.execvp("bash", call[call.index("/bin/bash"):])
    elif output:
      print(output, file=sys.stderr if code else sys.stdout)
    sys.exit(code)
"""


class Done(NamedTuple):
  """A script that ended: its exit code, what it wrote, and the calls of stand-ins, each a list of words."""

  code: int
  output: str
  errors: str
  calls: list[list[str]]

  def calls_with(self, *words: str) -> list[list[str]]:
    """Those calls that contain all of these among their words, or within one."""
    return [call for call in self.calls if all(word in " ".join(call) for word in words)]


class Stage:
  """A folder with stand-ins first on the PATH, and a home of its own."""

  def __init__(self, folder: Path, names: str):
    self.home = folder / "home"
    self.calls = folder / "calls.jsonl"
    self.programs = folder / "programs"
    for made in (self.home, self.programs):
      made.mkdir()
    for name in names.split():
      self.add(self.programs / name)

  def add(self, path: Path) -> None:
    """Puts a stand-in at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STUB.replace("{python}", sys.executable))
    path.chmod(0o755)

  def environment(self, answers=(), shown="", **variables: str) -> dict[str, str]:
    """What a script finds in its environment; nothing of ours but the PATH."""
    path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
    stub = {"STUB_CALLS": str(self.calls), "STUB_ANSWERS": json.dumps(list(answers)), "STUB_SHOWN": shown}
    return {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8", **stub, **variables}

  def run(self, *command: str | Path, answers=(), shown="", folder: Path | None = None, **variables: str) -> Done:
    """Runs a command to its end; `shown` names the stand-ins that print the variables of JAX and srun."""
    self.calls.write_text("")
    environment = self.environment(answers, shown, **variables)
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, timeout=60)
    return Done(done.returncode, done.stdout, done.stderr, self.recorded())

  def recorded(self) -> list[list[str]]:
    """The calls since the last `run` began."""
    return [json.loads(line) for line in self.calls.read_text().splitlines()]
