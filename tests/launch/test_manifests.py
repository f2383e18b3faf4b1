"""sky.yaml and the JobSet: the resources they request, and the commands that their scripts run, with stubs."""

import pytest
import yaml

from tests.launch.stubs import LAUNCH, Stage

SKY = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
JOBSET = yaml.safe_load((LAUNCH / "kubernetes/jobset.yaml").read_text())
MAIN = ["python", "-u", "-m", "lrat_jax.main", "--workdir=/share/lrat"]
ARGUMENTS = ["--config=configs/lrat.py:cifar10", "--config.name=two words"]


def test_sky_asks_for_spot_machines_that_come_back_to_the_same_bucket():
  recovery = SKY["resources"]["job_recovery"]
  assert SKY["resources"]["use_spot"] is True and recovery["recover_on_exit_codes"] == [75]
  assert recovery["max_restarts_on_errors"] > 0
  assert SKY["file_mounts"] == {"/share": {"name": "${BUCKET}", "mode": "MOUNT"}}
  assert [name for name, value in SKY["envs"].items() if value is None] == ["ARGUMENTS", "BUCKET"]


@pytest.mark.parametrize(
  ("nodes", "extra", "flags"),
  [
    ("1", "cuda13", []),
    ("2", "cuda13", ["--coordinator=10.0.0.1:8476", "--num_processes=2", "--process_id=1"]),
    ("4", "tpu", []),
  ],
)
def test_sky_tells_several_gpu_machines_of_one_another(tmp_path, nodes, extra, flags):
  stage = Stage(tmp_path, "")
  stage.add(stage.home / ".venv/bin/python")
  known = {"SKYPILOT_NUM_NODES": nodes, "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}
  chosen = {"RUN": "lrat", "JAX_EXTRA": extra, "ARGUMENTS": f"{ARGUMENTS[0]} '{ARGUMENTS[1]}'"}
  chosen |= {name: str(SKY["envs"][name]) for name in ("DATA", "WORKERS")}
  done = stage.run("bash", "-c", SKY["run"], folder=stage.home, answers=[("python", [(75, "")])], **known, **chosen)
  workers = "--config.data.workers=0"
  assert done.code == 75 and done.calls == [[*MAIN, workers, *ARGUMENTS, *flags]]
  chosen |= {"DATA": "/share/two words", "WORKERS": "5"}
  done = stage.run("bash", "-c", SKY["run"], folder=stage.home, **known, **chosen)
  data = ["--config.data.workers=5", "--config.data.data_dir=/share/two words"]
  assert done.calls[-1] == [*MAIN, *data, *ARGUMENTS, *flags]


def test_sky_sets_up_with_the_accelerator_s_jax(tmp_path):
  stage = Stage(tmp_path, "uv curl")
  done = stage.run("bash", "-c", SKY["setup"], JAX_EXTRA="tpu")
  assert [call[1] for call in done.calls] == ["venv", "pip"]
  assert done.calls[1][-3:] == ["--requirement", "requirements.txt", "jax[tpu]"]


@pytest.fixture
def workers():
  """The specification of the JobSet's only Job."""
  (replicated,) = JOBSET["spec"]["replicatedJobs"]
  return replicated["template"]["spec"]


def test_the_jobset_starts_again_but_after_a_final_error(workers):
  policy = JOBSET["spec"]["failurePolicy"]
  (rule,) = policy["rules"]
  assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert policy["maxRestarts"] > 0 and policy["restartStrategy"] == "BlockingRecreate"
  (final,) = workers["podFailurePolicy"]["rules"]
  assert final["action"] == "FailJob" and final["onExitCodes"]["values"] == [2, 3]
  assert workers["backoffLimit"] == 0 and workers["template"]["spec"]["restartPolicy"] == "Never"
  assert final["onExitCodes"]["containerName"] == workers["template"]["spec"]["containers"][0]["name"]


def test_the_jobset_s_pods_share_a_claim_and_have_time_to_save(workers):
  pod = workers["template"]["spec"]
  assert pod["terminationGracePeriodSeconds"] >= 120
  mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
  volumes = {volume["name"]: volume for volume in pod["volumes"]}
  assert volumes[mounts["/share"]]["persistentVolumeClaim"]["claimName"] == "lrat-jax"
  assert set(mounts.values()) == set(volumes)


def test_the_jobset_s_pods_find_the_first_of_them(tmp_path, workers):
  container = workers["template"]["spec"]["containers"][0]
  environment = {variable["name"]: variable["value"] for variable in container["env"]}
  assert int(environment["NODES"]) == workers["parallelism"] == workers["completions"]
  stage = Stage(tmp_path, "git pip python")
  (stage.home / "lrat_jax").mkdir()
  command = [*container["command"], *ARGUMENTS]
  done = stage.run(*command, folder=stage.home, JOB_COMPLETION_INDEX="1", **environment)
  name = f"{JOBSET['metadata']['name']}-{JOBSET['spec']['replicatedJobs'][0]['name']}-0-0.{JOBSET['metadata']['name']}"
  flags = [f"--coordinator={name}:8476", "--num_processes=2", "--process_id=1"]
  assert done.calls[0][-4:] == ["--branch=main", "--", environment["REPO"], "lrat_jax"]
  data = [f"--config.data.workers={container['resources']['requests']['cpu']}"]  # one thread per core
  assert done.calls[1][-1] == "jax[cuda13]" and done.calls[2] == [*MAIN, *data, *flags, *ARGUMENTS]
  environment |= {"DATA": "/share/two words"}
  done = stage.run(*command, folder=stage.home, JOB_COMPLETION_INDEX="1", **environment)
  data.append("--config.data.data_dir=/share/two words")
  assert done.calls[-1] == [*MAIN, *data, *flags, *ARGUMENTS]
  assert container["args"][0].startswith("--config=")


@pytest.mark.parametrize("tool", ["git", "pip"])
def test_a_tool_s_code_2_is_not_taken_for_the_run_s(tmp_path, workers, tool):
  container = workers["template"]["spec"]["containers"][0]
  environment = {variable["name"]: variable["value"] for variable in container["env"]}
  stage = Stage(tmp_path, "git pip python")
  (stage.home / "lrat_jax").mkdir()
  answers = [(f"{tool} ", [(2, "no")])]
  done = stage.run(*container["command"], answers=answers, folder=stage.home, JOB_COMPLETION_INDEX="0", **environment)
  assert done.code == 1 and not done.calls_with("lrat_jax.main")
