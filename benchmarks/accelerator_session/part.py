"""The process of one part: `python -m benchmarks.accelerator_session.part SETTINGS`, started by the session."""

import importlib
import json
import sys

from benchmarks.accelerator_session import session as session_lib

if __name__ == "__main__":
  session_lib.end_with_parent()
  session = session_lib.Session(**json.loads(sys.argv[1]))
  importlib.import_module(f"benchmarks.accelerator_session.{session.part}").run(session)
