"""Shared by the parts of a session: settings, records that are written to disk at once, and the sizes of a trial."""

import json
import os
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

NUM_CLASSES = 10


class Setting(NamedTuple):
  """A network and a global batch size whose train steps are timed."""

  network: str
  batch_size: int


class Scale(NamedTuple):
  """The sizes of everything; a trial runs the same code in minutes on a laptop's processor."""

  compared_images: int = 256  # correctness: attacked on the accelerator and on the CPU
  compared_epochs: int = 20  # correctness: epochs of training before that
  timed: tuple[Setting, ...] = (Setting("resnet18", 512), Setting("wide_resnet_34_10", 512), Setting("resnet18", 1024))
  num_compiled: int = 3  # how many of those are also compared with compiled PyTorch
  rounds: int = 3
  round_seconds: float = 0.7
  product_size: int = 8192
  network: str = "resnet18"  # from here on: training and evaluation
  train_batch_size: int = 256
  learning_rate: float = 0.2
  train_size: int = 0
  compile_seconds: float = 40.0  # an estimate, for one method's programs
  least_epochs: int = 8
  most_epochs: int = 30
  num_steps: int = 10
  evaluated_images: int = 2000
  square_images: int = 500
  square_queries: int = 5000
  autoattack_images: int = 500
  apgd_steps: int = 100
  file_bytes: int = 15 * 2**20 - 2**16


TRIAL = Scale(
  compared_images=64,
  compared_epochs=4,
  timed=(Setting("cnn_8", 16), Setting("wide_resnet_10_1", 16)),
  num_compiled=1,
  rounds=2,
  round_seconds=0.2,
  product_size=512,
  network="cnn_8",
  train_batch_size=64,
  train_size=512,
  compile_seconds=10.0,
  least_epochs=1,
  most_epochs=6,
  num_steps=2,
  evaluated_images=64,
  square_images=32,
  square_queries=50,
  autoattack_images=32,
  apgd_steps=5,
  file_bytes=200_000,
)


class Method(NamedTuple):
  """Fields besides those of adversarial training, and the training attacks by their name in a preset."""

  fields: dict[str, str]
  attacks: str = "pgd"

  @property
  def cost(self) -> int:
    """The number of attacks in a step."""
    return 3 if self.attacks == "union" else 1


_LOCAL, _GLOBAL = {"local_weights.kind": "lrat"}, {"global_weights.kind": "gairat"}
# In order of priority: if time is short, the last ones are left out.
METHODS = {
  "at": Method({}),
  "lrat": Method(_LOCAL),
  "gairat": Method(_GLOBAL),
  "at_union": Method({}, "union"),
  "lrat_union": Method(_LOCAL, "union"),
  "lrat_gairat": Method(_LOCAL | _GLOBAL),
}


class Session(NamedTuple):
  """The settings of a part, which its process gets as JSON.

  Attributes:
    part: its name, which its records have too.
    out: the folder for the results.
    scratch: a folder for all other files.
    source: the name of the data set in `data.load`.
    data_dir: where TFDS keeps it.
    trial: whether sizes are those of a trial.
    deadline: when the part is stopped, in seconds of `time.time`.
    auto_attack: a folder with the original AutoAttack's source, or "".
    methods: the names in `METHODS` to train.
  """

  part: str
  out: str
  scratch: str
  source: str
  data_dir: str
  trial: bool
  deadline: float
  auto_attack: str
  methods: tuple[str, ...] = tuple(METHODS)

  @property
  def scale(self) -> Scale:
    return TRIAL if self.trial else Scale()

  @property
  def preset(self) -> str:
    """The preset of the data set, for radii and normalisation."""
    return "digits" if self.source == "digits" else "cifar10"

  def left(self) -> float:
    """Seconds until the part is stopped."""
    return self.deadline - time.time()

  def record(self, table: str, **row: Any) -> None:
    """Appends a row to one of the tables; it is on disk when this returns."""
    line = json.dumps({"part": self.part, "table": table, "row": row}) + "\n"
    with (Path(self.scratch) / "records.jsonl").open("a") as file:
      file.write(line)
      file.flush()
      os.fsync(file.fileno())

  def attempt(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Returns `call(*arguments)`, or None if it fails; the reason is then recorded, and the part continues."""
    try:
      return call(*arguments)
    except Exception as error:  # on an untested kind of device, any exception is possible
      reason = " ".join(str(error).split())[:300]
      self.record("What failed", part=self.part, what=what, why=f"{type(error).__name__}: {reason}")
      traceback.print_exc()
      return None

  def records(self, table: str) -> list[dict[str, Any]]:
    """The rows of a table that this part and those before it have written."""
    found = read_records(Path(self.scratch))
    return [record["row"] for record in found if record["table"] == table]


def read_records(scratch: Path) -> list[dict[str, Any]]:
  """All complete records of a session so far."""
  path = scratch / "records.jsonl"
  lines = path.read_text().split("\n")[:-1] if path.exists() else []
  return [json.loads(line) for line in lines]


def end_with_parent() -> None:
  """Ends this process when the one that started it has ended, so that the accelerator is free after a kill."""
  parent = os.getppid()

  def watch() -> None:
    while os.getppid() == parent:
      time.sleep(0.5)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
