"""tpu_worker.sh with stubs for systemd and the tools that set up a machine; also as called by tpu_vm.sh."""

import shutil

import pytest

from tests.launch.stubs import LAUNCH, Stage

ARGUMENTS = (
  "--config=configs/lrat.py:cifar10",
  "--config.name=two words, $HOME, %h, `id`, \"a\" and 'b'\nand more",
  "",
)
THROUGH = '#!/usr/bin/env bash\nexec "$@"\n'


@pytest.fixture
def stage(tmp_path):
  """The home folder of a worker, with the code, and stubs for the programs that the script calls."""
  names = "systemctl systemd-run mountpoint gcsfuse mount.nfs mount mkdir chown curl hostname sleep"
  stage = Stage(tmp_path, names)
  stage.add(stage.programs / "sudo", THROUGH)
  for path in (".local/bin/uv", "lrat_jax/.venv/bin/python"):
    stage.add(stage.home / path)
  shutil.copytree(LAUNCH, stage.home / "lrat_jax/launch")
  return stage


def run(stage, *arguments, answers=()):
  """Runs the script in the home folder, as ssh does."""
  return stage.run("bash", "lrat_jax/launch/tpu_worker.sh", *arguments, answers=answers, folder=stage.home)


def unit(load="loaded", active="active", sub="running", code=0, status=0):
  """The reply of systemctl about the job."""
  said = f"LoadState={load}\nActiveState={active}\nSubState={sub}\nExecMainCode={code}\nExecMainStatus={status}"
  return ("systemctl show", [(0, said)])


ABSENT = unit("not-found", "inactive", "dead")


def test_arguments_arrive_as_they_were_given_through_ssh_and_systemd(stage):
  # gcloud passes --command to the worker's login shell; systemd-run runs its last two words.
  stage.add(stage.programs / "gcloud", '#!/usr/bin/env bash\nlast=${!#}\nexec bash -c "${last#--command=}"\n')
  stage.add(stage.programs / "systemd-run", '#!/usr/bin/env bash\nexec "${@: -2}"\n')
  variables = {"TPU_NAME": "pod", "ZONE": "z", "WORKDIR": "/mnt/lrat_jax/it's here"}
  words = ["bash", LAUNCH / "tpu_vm.sh", "run", *ARGUMENTS[:2]]
  done = stage.run(*words, answers=[ABSENT], folder=stage.home, **variables)
  assert done.code == 0, done.errors
  (call,) = done.calls_with("lrat_jax.main")
  assert call == ["python", "-u", "-m", "lrat_jax.main", "--workdir=/mnt/lrat_jax/it's here", *ARGUMENTS[:2]]


def test_the_job_is_a_unit_that_is_ended_before_network_and_folder(stage):
  done = run(stage, "start", "gs://bucket", *ARGUMENTS, answers=[ABSENT])
  (call,) = done.calls_with("systemd-run")
  assert call[-2:] == ["/bin/bash", f"{stage.home}/lrat_jax_run.sh"] and "--unit=lrat_jax.service" in call
  assert "--property=After=network-online.target lrat_jax_share.service" in call
  assert "--remain-after-exit" in call and "--property=KillMode=mixed" in call
  assert f"--property=StandardOutput=append:{stage.home}/lrat_jax.log" in call
  # The unit of a run that has ended is cleared first.
  assert [one[1] for one in done.calls_with("systemctl")] == ["show", "stop", "reset-failed"]


@pytest.mark.parametrize(
  ("answers", "message"),
  [([unit()], "a run is going on here"), ([ABSENT, ("mountpoint", [(1, "")])], "gs://bucket is not mounted")],
)
def test_no_second_run_and_none_on_the_wrong_disk(stage, answers, message):
  done = run(stage, "start", "gs://bucket", "--config=x", answers=answers)
  assert done.code == 1 and message in done.errors
  assert not done.calls_with("systemd-run") and not done.calls_with("systemctl", "stop")


@pytest.mark.parametrize(
  ("said", "same", "other"),
  [
    (ABSENT, "absent", "absent"),
    (unit(active="inactive", sub="dead"), "absent", "absent"),
    (unit(), "running", "other"),
    (unit(active="deactivating", sub="stop-sigterm"), "running", "other"),
    (unit(sub="exited", code=1), "exit 0", "absent"),
    (unit(active="failed", sub="failed", code=1, status=75), "exit 75", "absent"),
    (unit(active="failed", sub="failed", code=1, status=2), "exit 2", "absent"),
    # Killed by signal 2 differs from exit code 2.
    (unit(active="failed", sub="failed", code=2, status=2), "exit 130", "absent"),
    (unit(active="failed", sub="failed", code=3, status=6), "exit 134", "absent"),
  ],
)
def test_the_state_of_this_run_and_of_another(stage, said, same, other):
  run(stage, "start", "", *ARGUMENTS, answers=[ABSENT])
  assert run(stage, "state", *ARGUMENTS, answers=[said]).output == f"job={same}\n"
  assert run(stage, "state", answers=[said]).output == f"job={same}\n"
  assert run(stage, "state", *ARGUMENTS[:1], answers=[said]).output == f"job={other}\n"


def test_idle(stage):
  assert run(stage, "idle", answers=[unit()]).code == 1
  for said in (ABSENT, unit(sub="exited", code=1), unit(active="failed", sub="failed", code=1, status=75)):
    assert run(stage, "idle", answers=[said]).code == 0


def test_setup_installs_and_mounts_a_bucket_as_a_unit(stage):
  done = run(stage, "setup", "gs://bucket", answers=[("mountpoint", [(1, ""), (1, ""), (0, "")])])
  assert done.code == 0, done.errors
  assert [call[1:] for call in done.calls_with("uv", "--quiet")] == [
    ["venv", "--quiet", "--python", "3.12", ".venv"],
    ["pip", "install", "--quiet", "--requirement", "requirements.txt", "jax[tpu]"],
  ]
  (call,) = done.calls_with("systemd-run")
  flags = ["gcsfuse", "--foreground", "--implicit-dirs", "--rename-dir-limit=10000"]
  assert call[-6:] == [*flags, "bucket", "/mnt/lrat_jax"] and "--unit=lrat_jax_share.service" in call
  assert not done.calls_with("curl")


def test_setup_mounts_nfs_or_nothing_and_not_twice(stage):
  away = ("mountpoint", [(1, "")])
  assert run(stage, "setup", "host:/export", answers=[away]).calls[-1] == [
    "mount", "--types", "nfs", "host:/export", "/mnt/lrat_jax",
  ]  # fmt: skip
  alone = run(stage, "setup", "", answers=[away])
  assert alone.code == 0 and not alone.calls_with("systemd-run") and not alone.calls_with("--types")
  again = run(stage, "setup", "host:/export")
  assert again.code == 0 and not again.calls_with("--types") and not again.calls_with("chown")


def test_setup_fails_where_the_bucket_does_not_appear(stage):
  done = run(stage, "setup", "gs://bucket", answers=[("mountpoint", [(1, "")])])
  assert done.code == 1 and "gs://bucket did not appear at /mnt/lrat_jax" in done.errors


def test_stop_asks_systemd_and_an_unknown_word_is_refused(stage):
  assert run(stage, "stop").calls == [["systemctl", "stop", "lrat_jax.service"]]
  done = run(stage, "begin")
  assert done.code == 2 and "error: 'begin' is unknown; choose from" in done.errors
