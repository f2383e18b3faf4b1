"""Each command of tpu_vm.sh, with stubs for gcloud and git: what it calls, and what a dry run prints."""

import re

import pytest

from tests.launch.stubs import LAUNCH

SCRIPT = LAUNCH / "tpu_vm.sh"
PLACE = ["--zone=us-west4-a", "--quiet"]
ARGUMENTS = (
  "--config=configs/lrat.py:cifar10",
  "--config.name=two words, $HOME, `id`, \"double\" and 'single'\nand more",
)
SSH = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", *PLACE]
VARIABLES = {"TPU_NAME": "pod", "ZONE": "us-west4-a", "SHARE": "gs://bucket", "POLL_SECONDS": "0"}
GIT = [("git rev-parse", [(0, "c0ffee")]), ("git status", [(0, "")])]
# The replies of the workers: at first nothing runs there, then the run has ended.
JOB = ("ssh worker.sh state", [(0, "job=absent\njob=absent"), (0, "job=exit 0\njob=exit 0")])
COMMANDS = [
  ["rehearse", *ARGUMENTS], ["create"], ["setup"], ["run", *ARGUMENTS], ["watch", *ARGUMENTS], ["status"], ["logs"],
  ["stop"], ["fetch"], ["fetch", "--checkpoints"], ["delete"],
]  # fmt: skip


def run(stage, *arguments, answers=(), **variables):
  """Runs the script in an empty folder; variables that are None are not set."""
  chosen = {name: value for name, value in {**VARIABLES, **variables}.items() if value is not None}
  return stage.run("bash", SCRIPT, *arguments, answers=answers, folder=stage.home, **chosen)


def reading(call):
  """Whether a call only queries git about this checkout."""
  return call[0] == "git" and ("rev-parse" in call or "status" in call)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0] + command[-1][:6] * (len(command) > 1))
@pytest.mark.parametrize("variables", [{}, {"PROVISION": "spot", "SHARE": "host:/export", "PROJECT": "mine"}])
def test_a_dry_run_prints_exactly_what_the_real_one_calls_and_calls_nothing(stage, command, variables):
  missing = [(1, "ERROR: (gcloud) NOT_FOUND: Resource 'pod' was not found")] * (command[0] == "watch")
  first = "tpu-vm describe" if variables else "queued-resources describe"
  states = [(first, [*missing, (0, "READY" if variables else "ACTIVE")]), ("tpu-vm describe", [(0, "READY")])]
  real = run(stage, *command, answers=[*GIT, *states, JOB], **variables)
  dry = run(stage, "--dry-run", *command, answers=GIT, **variables)
  assert real.code == dry.code == 0, real.errors + dry.errors
  assert [call for call in dry.calls if not reading(call)] == []
  copied = stage.run("bash", "-c", dry.output, folder=stage.home)
  assert copied.calls == [call for call in real.calls if not reading(call)] and copied.calls


@pytest.mark.parametrize(
  ("provision", "kind", "flags"),
  [
    ("queued-spot", "queued-resources", ["--runtime-version=v2-alpha-tpuv6e", "--spot"]),
    ("queued", "queued-resources", ["--runtime-version=v2-alpha-tpuv6e"]),
    ("spot", "tpu-vm", ["--version=v2-alpha-tpuv6e", "--spot"]),
    ("on-demand", "tpu-vm", ["--version=v2-alpha-tpuv6e"]),
  ],
)
def test_create_and_delete(stage, provision, kind, flags):
  chosen = {"PROVISION": provision, "ACCELERATOR_TYPE": "v6e-64", "CREATE_FLAGS": "--network=mine --labels=a=b"}
  queued = kind == "queued-resources"
  command = ["gcloud", "compute", "tpus", kind]
  created = [*command, "create", "pod", *["--node-id=pod"] * queued, *PLACE, "--accelerator-type=v6e-64", *flags]
  assert run(stage, "create", **chosen).calls == [[*created, "--network=mine", "--labels=a=b"]]
  assert run(stage, "delete", **chosen).calls == [[*command, "delete", "pod", *PLACE, *["--force"] * queued]]


@pytest.mark.parametrize(
  ("kind", "image"),
  [("v4-32", "tpu-ubuntu2204-base"), ("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v5p-8", "v2-alpha-tpuv5")],
)
def test_the_image_fits_the_type(stage, kind, image):
  assert f"--runtime-version={image}" in run(stage, "create", ACCELERATOR_TYPE=kind).calls[0]
  assert "--runtime-version=own" in run(stage, "create", ACCELERATOR_TYPE=kind, RUNTIME_VERSION="own").calls[0]


@pytest.mark.parametrize(
  ("kind", "topology"), [("v5litepod-8", "v5e:2x4"), ("v6e-256", "v6e:16x16"), ("v5p-128", "v5p:4x4x4")]
)
def test_a_rehearsal_is_for_the_type_and_needs_no_gcloud(stage, kind, topology):
  done = run(stage, "rehearse", *ARGUMENTS, ACCELERATOR_TYPE=kind, TPU_NAME=None, ZONE=None)
  assert done.calls == [["python", "-m", "lrat_jax.main", *ARGUMENTS, "--dry_run", f"--topology={topology}"]]
  done = run(stage, "rehearse", *ARGUMENTS, ACCELERATOR_TYPE=kind, TOPOLOGY="v5e:1x4")
  assert done.calls[0][-1] == "--topology=v5e:1x4"


def test_a_rehearsal_of_an_unknown_type_asks_for_its_grid(stage):
  done = run(stage, "rehearse", *ARGUMENTS, ACCELERATOR_TYPE="v4-8")
  assert done.code == 2 and "TOPOLOGY is missing" in done.errors and not done.calls


def test_setup_sends_the_commit_that_was_chosen(stage):
  done = run(stage, "setup", answers=GIT, REF="v1.0")
  archive = f"{stage.home}/.cache/lrat_jax/pod.tar.gz"
  assert done.calls_with("rev-parse")[0][-1] == "v1.0^{commit}"
  packed, copied, unpacked = [call for call in done.calls if not reading(call)]
  assert packed[-4:] == ["archive", "--format=tar.gz", f"--output={archive}", "c0ffee"]
  assert copied[-3:] == ["--worker=all", archive, "pod:lrat_jax.tar.gz"]
  assert unpacked[:-1] == [*SSH, "--worker=all"]
  assert "tar -xzf lrat_jax.tar.gz" in unpacked[-1] and unpacked[-1].endswith("tpu_worker.sh setup gs://bucket")


def test_setup_from_a_git_url_sends_nothing(stage):
  done = run(stage, "setup", answers=GIT, REPO="https://example.com/lrat.git", REF="v1.0")
  (call,) = done.calls
  assert (
    "git clone --quiet -- https://example.com/lrat.git lrat_jax && git -C lrat_jax checkout --quiet v1.0" in call[-1]
  )


def test_setup_says_what_it_leaves_out_and_refuses_an_unknown_commit(stage):
  dirty = [GIT[0], ("git status", [(0, " M main.py")])]
  assert "not committed here is not sent" in run(stage, "setup", answers=dirty).errors
  unknown = run(stage, "setup", answers=[("git rev-parse", [(128, "")])], REF="nope")
  assert unknown.code == 2 and "REF=nope is not a commit" in unknown.errors and not unknown.calls_with("gcloud")


def test_fetch_takes_the_bucket_or_the_worker(stage):
  bucket = ["gcloud", "storage", "rsync", "gs://bucket/runs/pod", "runs/pod", "--recursive"]
  assert run(stage, "fetch").calls == [[*bucket, "--exclude=^checkpoints/.*"]]
  assert run(stage, "fetch", "--checkpoints").calls == [bucket]
  packed, copied, unpacked = run(stage, "fetch", SHARE="", WORKDIR="/home/me/a b", RESULTS="here").calls
  assert packed[-2:] == ["--worker=0", "--command=tar -czf results.tar.gz --exclude=./checkpoints -C '/home/me/a b' ."]
  assert copied[-3:-1] == ["--worker=0", "pod:results.tar.gz"] and unpacked == ["tar", "-xzf", copied[-1], "-C", "here"]
  assert "--exclude" not in run(stage, "fetch", "--checkpoints", SHARE="").calls[0][-1]


def test_a_failure_of_gcloud_is_the_script_s(stage):
  done = run(stage, "setup", answers=[*GIT, ("scp", [(5, "ERROR: no route")])])
  assert done.code == 5 and "no route" in done.errors and not done.calls_with("ssh")


@pytest.mark.parametrize(
  ("command", "variables", "message"),
  [
    ([], {}, "'' is unknown; choose from rehearse, create"),
    (["destroy"], {}, "'destroy' is unknown"),
    (["create"], {"TPU_NAME": None}, "TPU_NAME is missing"),
    (["create"], {"ZONE": ""}, "ZONE is missing"),
    (["create"], {"ACCELERATOR_TYPE": "v9-8"}, "RUNTIME_VERSION is missing; none is known for ACCELERATOR_TYPE=v9-8"),
    (["create"], {"PROVISION": "cheap"}, "PROVISION=cheap is unknown; choose from"),
    (["create"], {"AFTER": "burn"}, "AFTER=burn is unknown; choose from"),
    (["create"], {"SHARE": "gs://bucket/folder"}, "SHARE=gs://bucket/folder"),
    (["create"], {"WORKDIR": "runs/a"}, "WORKDIR=runs/a is not an absolute path"),
    (["create"], {"POLL_SECONDS": "1m"}, "POLL_SECONDS=1m is not a whole number"),
    (["create", "--config=x"], {}, "create takes no arguments"),
    (["run"], {}, "--config is missing"),
    (["run", "--config=x", "--workdir=y"], {}, "set WORKDIR instead"),
    (["run", "config=x"], {}, "'config=x' is not understood"),
    (["watch", "--config=x"], {"SHARE": None}, "SHARE is missing"),
    (["watch", "--config=x"], {"WORKDIR": "/tmp/a"}, "WORKDIR=/tmp/a is not below /mnt/lrat_jax"),
    (["fetch", "--all"], {}, "'--all' is not understood"),
  ],
)
def test_bad_input_is_one_line_and_code_2(stage, command, variables, message):
  for first in ([], ["--dry-run"]):
    done = run(stage, *first, *command, **variables)
    assert done.code == 2 and done.calls == [] and done.output == ""
    assert re.fullmatch(rf"error: [^\n]*{re.escape(message)}[^\n]*\n", done.errors), done.errors
