"""Shared by all tests: eight CPU devices, a compilation cache, and models that compile quickly."""

import os
from importlib.metadata import version
from pathlib import Path

_CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"
# Set in the environment, so that programs started by tests share the cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# The networks here are tiny and compilation takes most of the time, so optimisations for large networks are off.
_FLAGS = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):  # the next version aborts on this flag, which it does not know
  _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _FLAGS)

import filelock  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from lrat_jax import main, models  # noqa: E402
from tests import programs  # noqa: E402

# Each test in these folders starts a process or draws hundreds of examples.
_SLOW_FOLDERS = ("faults", "fuzz", "launch")
# Files that take a minute or more run first, so that no worker starts one at the end.
_FIRST = (
  "test_kill.py",
  "test_stop.py",
  "test_distributed.py",
  "test_main.py",
  "test_step.py",
  "test_step_program.py",
  "test_examples.py",
)
# The time limit of a test that is not marked slow. Set-up is not counted, and a test that compiles has no limit.
_MOST_SECONDS = float(os.environ.get("LRAT_JAX_TEST_SECONDS", "5"))

_MOST_MAPPINGS = 20_000

settings.register_profile("lrat_jax", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("lrat_jax")


def _once(tmp_path_factory, name, make):
  """Returns the folder that `make` filled; the first worker calls `make`, and all others reuse the folder."""
  root = tmp_path_factory.getbasetemp()
  root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
  with filelock.FileLock(root / f"{name}.lock"):
    if not (root / f"{name}.done").exists():
      make(root / name)
      (root / f"{name}.done").touch()
  return root / name


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
  """Clears compiled programs before Linux's limit of 65,530 mappings per process is reached; each program has some."""
  yield
  maps = Path("/proc/self/maps")
  if maps.exists() and len(maps.read_bytes().splitlines()) > _MOST_MAPPINGS:
    jax.clear_caches()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
  """The workdir of a small run of LRAT with GAIRAT on digits, trained and evaluated; tests must not write to it."""

  def make(workdir):
    assert main.main([*programs.RUN, f"--workdir={workdir}"]) == 0

  return _once(tmp_path_factory, "finished", make)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
  """The workdir of the same run, only trained, by a process with two devices; tests must not write to it."""
  return _once(tmp_path_factory, "whole_run", lambda workdir: programs.finish(workdir, "--mode=train"))


@pytest.fixture(scope="session")
def images():
  """float [16, 8, 8, 1] in [0, 1]."""
  return jax.random.uniform(jax.random.key(1), (16, 8, 8, 1))


@pytest.fixture(scope="session")
def labels():
  """int [16] in [0, 5)."""
  return jnp.arange(16) % 5


@pytest.fixture(scope="session")
def keys():
  """One key for each of the 16 images."""
  return jax.random.split(jax.random.key(2), 16)


@pytest.fixture(scope="session")
def cnn_logits():
  """A small convolutional network with random weights, 5 classes, with logits spread enough to attack."""
  model = models.create("cnn_4", 5)
  variables = model.init(jax.random.key(3), jnp.zeros((1, 8, 8, 1)))
  return lambda x: 10.0 * model.apply(variables, x)


@pytest.fixture(scope="session")
def linear_weights():
  """float32 [64, 5]: logits = x.reshape(-1, 64) @ weights."""
  return np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)


@pytest.fixture(scope="session")
def linear_logits(linear_weights):
  return lambda x: x.reshape(x.shape[0], -1) @ jnp.asarray(linear_weights)


def pytest_collection_modifyitems(items):
  tests = Path(__file__).parent
  for item in items:
    if item.path.relative_to(tests).parts[0] in _SLOW_FOLDERS:
      item.add_marker(pytest.mark.slow)
  items.sort(key=lambda item: _FIRST.index(item.path.name) if item.path.name in _FIRST else len(_FIRST))


_CPU_SECONDS = pytest.StashKey[float]()
_compilations = []  # cache misses of the current test; with any, it has no time limit
jax.monitoring.register_event_listener(
  lambda event, **_: _compilations.append(event) if event == "/jax/compilation_cache/cache_misses" else None
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
  start = sum(os.times()[:4])
  _compilations.clear()
  try:
    return (yield)
  finally:
    item.stash[_CPU_SECONDS] = sum(os.times()[:4]) - start  # of this process and of its child processes that have ended


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  """Fails a test that is too slow to run every time and is not marked slow."""
  report = yield
  unmarked = item.get_closest_marker("slow") is None
  if unmarked and not _compilations and report.when == "call" and report.passed:
    # On a busy machine, wall-clock time includes the time in which other processes compute.
    seconds = min(call.duration, item.stash[_CPU_SECONDS])
    if seconds > _MOST_SECONDS:
      report.outcome = "failed"
      report.longrepr = f"{item.nodeid} took {seconds:.1f} s: mark it slow, or make it faster ({_MOST_SECONDS:g} s)."
  return report
