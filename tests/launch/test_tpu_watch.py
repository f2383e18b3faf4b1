"""`tpu_vm.sh watch`, with stubs for gcloud: preemptions, stops and crashes until the run has ended."""

import pytest

from tests.launch.test_tpu_vm import GIT, run

NOT_FOUND = (1, "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource 'pod' was not found")


def watch(stage, *, queue=("ACTIVE",), vm=("READY",), job, answers=(), **variables):
  """Runs `watch` with sequences of replies of the queue, the TPU VM and the workers; the last reply is repeated."""
  turns = lambda states: [NOT_FOUND if state is None else (0, state) for state in states]
  said = [("queued-resources describe", turns(queue)), ("tpu-vm describe", turns(vm)), ("worker.sh state", turns(job))]
  return run(stage, "watch", "--config=x", answers=[*answers, *GIT, *said], **variables)


def steps(done):
  """The names of the calls that change something, in order."""
  names = {" create ": "create", " delete ": "delete", "worker.sh setup ": "setup", "worker.sh start ": "start"}
  return " ".join(name for call in done.calls for words, name in names.items() if words in " ".join(call))


@pytest.mark.parametrize(
  ("provision", "queue", "vm"),
  [
    ("queued-spot", (None, "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"), ("READY",)),
    ("spot", (), (None, "CREATING", "READY")),
  ],
)
def test_from_nothing_to_the_end(stage, provision, queue, vm):
  job = ("job=absent\njob=absent", "job=running\njob=running", "job=exit 0\njob=running", "job=exit 0\njob=exit 0")
  done = watch(stage, queue=queue, vm=vm, job=job, PROVISION=provision)
  assert done.code == 0 and steps(done) == "create setup start"
  assert "pod still exists, and costs money" in done.errors


@pytest.mark.parametrize(
  ("provision", "queue", "vm"),
  [
    ("queued-spot", ("ACTIVE", "SUSPENDING", "SUSPENDED", "ACTIVE"), ("READY",)),
    ("queued-spot", ("ACTIVE",), ("READY", "PREEMPTED", "READY")),
    ("queued-spot", ("ACTIVE",), ("READY", None, "READY")),
    ("spot", (), ("READY", "PREEMPTED", "READY")),
    ("on-demand", (), ("READY", "TERMINATED", "READY")),
  ],
)
def test_a_preempted_machine_is_made_again_and_the_run_goes_on(stage, provision, queue, vm):
  done = watch(stage, queue=queue, vm=vm, job=("job=running", "job=absent", "job=exit 0"), PROVISION=provision)
  assert done.code == 0 and steps(done) == "delete create setup start"


def test_a_run_that_stopped_on_request_is_started_again_however_often(stage):
  job = ("job=running", *["job=exit 75\njob=exit 75", "job=running"] * 4, "job=exit 75\njob=exit 1", "job=exit 0")
  done = watch(stage, job=job, MAX_CRASHES="1", MAX_FAILURES="1")
  assert done.code == 0 and steps(done) == " ".join(["setup start"] * 5)


@pytest.mark.parametrize("code", [2, 3])
def test_bad_input_and_values_that_are_not_finite_are_final(stage, code):
  done = watch(stage, job=("job=absent", "job=running", f"job=exit 1\njob=exit {code}\njob=exit 75"))
  assert done.code == code and steps(done) == "setup start"
  assert done.calls_with("ssh", "tail -n 20 lrat_jax.log")


def test_crashes_are_tried_again_up_to_a_number(stage):
  done = watch(stage, job=("job=running", "job=exit 1\njob=exit 137"), MAX_CRASHES="3")
  assert done.code == 1 and steps(done) == "setup start setup start"
  again = watch(stage, job=("job=running", "job=exit 134", "job=running", "job=exit 0"), MAX_CRASHES="3")
  assert again.code == 0 and steps(again) == "setup start"


def test_a_preemption_forgives_crashes(stage):
  job = ("job=running", "job=exit 1", "job=absent", "job=running", "job=exit 1", "job=exit 0")
  done = watch(stage, vm=("READY", "READY", "PREEMPTED", "READY"), job=job, MAX_CRASHES="2")
  assert done.code == 0 and steps(done) == "setup start delete create setup start setup start"


def test_an_old_end_counts_only_if_it_was_a_success(stage):
  assert steps(watch(stage, job=("job=exit 0",))) == ""
  for code in (1, 2, 3, 75):
    done = watch(stage, job=(f"job=exit {code}", "job=exit 0"), MAX_CRASHES="1")
    assert done.code == 0 and steps(done) == "setup start"


def test_a_worker_that_lost_its_job_is_set_up_again_when_the_others_ended(stage):
  done = watch(stage, job=("job=running\njob=absent", "job=exit 1\njob=absent", "job=exit 0\njob=exit 0"))
  assert done.code == 0 and steps(done) == "setup start"


def test_another_run_is_not_touched(stage):
  done = watch(stage, job=("job=other\njob=running",))
  assert done.code == 2 and steps(done) == "" and "another run is going on" in done.errors


def test_an_error_of_gcloud_is_not_a_missing_machine(stage):
  refused = [("describe", [(1, "ERROR: PERMISSION_DENIED: not yours")])]
  done = watch(stage, job=(), answers=refused, MAX_FAILURES="3")
  assert done.code == 1 and steps(done) == ""
  assert len(done.calls_with("describe")) == 3 and "PERMISSION_DENIED: not yours" in done.errors


@pytest.mark.parametrize("words", ["queued-resources create", "scp", "worker.sh setup", "worker.sh start"])
def test_a_step_that_fails_is_tried_again_up_to_a_number(stage, words):
  queue = (None,) if "create" in words else ("ACTIVE",)
  broken = watch(stage, queue=queue, job=("job=absent",), answers=[(words, [(1, "ERROR: no")])], MAX_FAILURES="3")
  assert broken.code == 1 and len(broken.calls_with(*words.split())) == 3
  flaky = [(words, [(1, "ERROR: no"), (0, "")])]
  job = ("job=absent",) * (2 - len(queue) * ("create" in words)) + ("job=running", "job=exit 0")
  done = watch(stage, queue=(*queue, *queue, "ACTIVE"), job=job, answers=flaky, MAX_FAILURES="3")
  assert done.code == 0 and "1 times in a row" in done.errors


def test_workers_that_cannot_be_reached_are_asked_again_up_to_a_number(stage):
  lost = [
    ("worker.sh state", [(255, "ssh: timed out"), (255, "ssh: timed out"), (0, "job=running"), (0, "job=exit 0")])
  ]
  assert watch(stage, job=(), answers=lost, MAX_FAILURES="3").code == 0
  done = watch(stage, job=(), answers=lost, MAX_FAILURES="2")
  assert done.code == 1 and "asking the workers (ssh: timed out)" in done.errors


def test_a_request_that_failed_in_the_queue_is_made_again_up_to_a_number(stage):
  done = watch(stage, queue=("FAILED", "FAILED", "ACTIVE"), job=("job=exit 0",), MAX_FAILURES="3")
  assert done.code == 0 and steps(done) == "delete create delete create"
  assert steps(watch(stage, queue=("FAILED",), job=(), MAX_FAILURES="2")) == "delete create"


def test_the_machine_goes_at_the_end_if_one_says_so(stage):
  done = watch(stage, job=("job=exit 0",), AFTER="delete")
  assert done.code == 0 and steps(done) == "delete"
