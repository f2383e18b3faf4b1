"""slurm.sbatch with stubs for srun and scontrol: the commands it runs, and which jobs are requeued and which end."""

import re
import shlex
import signal
import subprocess
import time

import pytest

from tests.launch.stubs import LAUNCH, Stage

SCRIPT = LAUNCH / "slurm.sbatch"
ARGUMENTS = ("--config=configs/lrat.py:cifar10", "--config.name=two words, $HOME and 'quotes'")
# Options from sbatch's manual page.
DOCUMENTED = {
  "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "requeue", "signal", "open-mode",
  "output",
}  # fmt: skip


@pytest.fixture
def stage(tmp_path):
  """A folder to submit from, with a virtual environment."""
  stage = Stage(tmp_path, "srun scontrol")
  stage.add(tmp_path / ".venv/bin/python")
  return stage


def run(stage, *arguments, code=0, state="RUNNING", **variables):
  """Runs the script as Slurm does; srun exits with `code`, and the job is then in `state`."""
  answers = [("srun", [(code, "")]), ("scontrol show", [(0, f"   JobState={state} Reason=None")])]
  folder = str(stage.home.parent)
  job = {"SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": folder, "SLURM_CPUS_PER_TASK": "16", "SLURM_GPUS_ON_NODE": "4"}
  return stage.run("bash", SCRIPT, *arguments, answers=answers, shown="srun", **{**job, **variables})


def test_every_node_gets_one_process_with_the_arguments_as_they_were_given(stage):
  done = run(stage, *ARGUMENTS)
  folder = stage.home.parent
  python = [str(folder / ".venv/bin/python"), "-u", "-m", "lrat_jax.main", f"--workdir={folder}/runs/slurm_17"]
  assert done.code == 0
  workers = "--config.data.workers=16"  # one thread per core of the task
  assert done.calls == [["srun", "--kill-on-bad-exit=0", "--wait=300", *python, workers, *ARGUMENTS]]


def test_data_and_workers_are_those_of_the_environment(stage):
  done = run(stage, *ARGUMENTS, DATA="/scratch/two words", WORKERS="5")
  expected = ["--config.data.data_dir=/scratch/two words", "--config.data.workers=5", *ARGUMENTS]
  assert done.calls[0][-len(expected) :] == expected


def test_a_process_sees_all_gpus_and_cores_of_its_node(stage):
  assert run(stage, *ARGUMENTS).output == "JAX_LOCAL_DEVICE_IDS=0,1,2,3\nSRUN_CPUS_PER_TASK=16\n"
  without = run(stage, *ARGUMENTS, SLURM_GPUS_ON_NODE="").output
  assert without == "SRUN_CPUS_PER_TASK=16\n"


def test_the_dry_run_prints_that_line_and_runs_nothing(stage):
  real = run(stage, *ARGUMENTS)
  dry = run(stage, "--dry-run", *ARGUMENTS)
  assert dry.code == 0 and dry.calls == []
  assert [shlex.split(dry.output)] == real.calls


def test_the_dry_run_needs_no_slurm(stage):
  done = stage.run("bash", SCRIPT, "--dry-run", "--config=x", folder=stage.home)
  assert shlex.split(done.output)[-2:] == [f"--workdir={stage.home}/runs/slurm_JOB", "--config=x"]


def test_stopped_on_request_is_queued_again(stage):
  done = run(stage, *ARGUMENTS, code=75)
  assert done.code == 75 and done.calls_with("scontrol", "requeue") == [["scontrol", "requeue", "17"]]


@pytest.mark.parametrize("state", ["PENDING", "CANCELLED", "COMPLETING", "TIMEOUT"])
def test_a_job_that_slurm_has_decided_about_is_left_alone(stage, state):
  done = run(stage, *ARGUMENTS, code=75, state=state)
  assert done.code == 75 and not done.calls_with("requeue")


@pytest.mark.parametrize("code", [0, 1, 2, 3, 137])
def test_any_other_end_is_an_end(stage, code):
  done = run(stage, *ARGUMENTS, code=code)
  assert done.code == code and not done.calls_with("scontrol")


def test_the_shell_outlives_a_signal_that_is_meant_for_the_tasks(stage):
  answers = [("srun", [(75, "wait")]), ("scontrol show", [(0, "JobState=RUNNING")])]
  folder = str(stage.home.parent)
  environment = stage.prepare(answers, SLURM_JOB_ID="17", SLURM_SUBMIT_DIR=folder)
  process = subprocess.Popen(["bash", SCRIPT, *ARGUMENTS], env=environment, stdout=subprocess.PIPE)
  while not stage.recorded():
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 75
  assert [call[:2] for call in stage.recorded()[1:]] == [["scontrol", "show"], ["scontrol", "requeue"]]


@pytest.mark.parametrize(
  ("arguments", "variables", "message"),
  [
    ([], {}, "--config is missing"),
    (["--config=x", "--workdir=y"], {}, "set WORKDIR"),
    (["--config=x"], {"SLURM_JOB_ID": ""}, "SLURM_JOB_ID is missing"),
    (["--config=x"], {"VENV": "/nowhere"}, "VENV=/nowhere"),
  ],
)
def test_bad_input_is_one_line_and_code_2(stage, arguments, variables, message):
  done = run(stage, *arguments, **variables)
  assert done.code == 2 and done.calls == []
  assert re.fullmatch(rf"error: [^\n]*{re.escape(message)}[^\n]*\n", done.errors)


def test_modules_are_loaded_before(stage):
  loads = "module() { echo \"module $*\"; }; export -f module; exec bash \"$@\""  # fmt: skip
  folder = str(stage.home.parent)
  variables = {"SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": folder, "MODULES": "cuda/13 gcc"}
  done = stage.run("bash", "-c", loads, "bash", SCRIPT, "--config=x", **variables)
  assert done.output.splitlines() == ["module load cuda/13", "module load gcc"] and done.calls_with("srun")


def test_what_sbatch_reads():
  text = SCRIPT.read_text()
  options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
  assert set(options) == DOCUMENTED and len(options) == text.count("#SBATCH")
  # sbatch stops reading at the first command.
  assert text.rindex("#SBATCH") < text.index("set -euo")
  assert options["signal"] == "TERM@120" and options["open-mode"] == "append" and options["requeue"] == ""
  assert options["ntasks-per-node"] == "1"
