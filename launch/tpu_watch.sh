# shellcheck shell=bash disable=SC2154  # what is not assigned here is in tpu_vm.sh
# Looking after a TPU VM and the run on it: the part of tpu_vm.sh (which sources this) behind `watch` and `status`.
#
# What the functions find out they leave in variables of their caller: answer, vm, job, and in a `watch` ended, started,
# failures and crashes.

# The command line that asks a worker for the state of its job; a new machine has no code to ask yet.
state_command() {
  local asked=(state)
  (($# == 0)) || asked+=("--workdir=$WORKDIR" "$@")
  echo "if test -f $worker; then bash $worker $(quoted "${asked[@]}"); else echo job=absent; fi"
}

# Sets `job` to what is going on on the workers together: running, other (a run with other arguments), absent,
# exit CODE, crash, or unknown. The first argument is what --dry-run takes for the answer.
look_at_job() {
  local kind
  job=unknown
  ask "$1" "${ssh[@]}" --worker=all --command="$(state_command "${@:2}")" || return 0
  for kind in other running absent 'exit 2' 'exit 3' 'exit 75'; do
    if grep --quiet --line-regexp "job=$kind" <<<"$answer"; then
      job=$kind
      return
    fi
  done
  case $(grep '^job=' <<<"$answer" | sort --unique) in
    '') ;;
    'job=exit 0') job='exit 0' ;;
    *) job=crash ;;
  esac
}

describe() {
  ask "$@" "${place[@]}" --verbosity=error || [[ $answer == *NOT_FOUND* ]] || return
  [[ $answer != *NOT_FOUND* ]] || answer=NOT_FOUND
  answer=${answer##*$'\n'}
}

# Sets `vm` to ready, waiting, gone (preempted or stopped), failed, missing, or unknown.
look_at_vm() {
  local queue=$PROVISION
  vm=unknown
  if [[ $PROVISION == queued* ]]; then
    describe "${1/READY/ACTIVE}" gcloud compute tpus queued-resources describe "$TPU_NAME" \
      --format='value(state.state)' || return 0
    queue=$answer
  fi
  case $queue in
    NOT_FOUND) vm=missing ;;
    FAILED) vm=failed ;;
    SUSPENDED) vm=gone ;;
    ACTIVE | spot | on-demand)
      describe "$1" gcloud compute tpus tpu-vm describe "$TPU_NAME" --format='value(state)' || return 0
      case $answer in
        READY) vm=ready ;;
        PREEMPTED | TERMINATED | STOPPED) vm=gone ;;
        NOT_FOUND) if [[ $queue == ACTIVE ]]; then vm=gone; else vm=missing; fi ;;
        *) vm=waiting ;;
      esac
      ;;
    *) vm=waiting ;;
  esac
}

# Counts a command that failed; sets `ended` where it was one too many.
failed() {
  failures=$((failures + 1))
  note "$1 failed, $failures times in a row"
  if ((failures >= MAX_FAILURES)); then ended=1; fi
}

recreate() {
  delete && create
}

launch() {
  setup && start "$@"
}

# Looks once after the job on a TPU VM that is ready; sets `ended` to the run's exit code when it is over. An end that
# an earlier `watch` saw, other than 0, is not this one's: the command was given again, so it is tried again.
tend() {
  look_at_job "$([[ $started == yes ]] && echo 'job=exit 0' || echo job=absent)" "$@"
  case $job/$started in
    running/*) failures=0 started=yes ;;
    other/*)
      note "another run is going on there; stop it first, or choose another TPU_NAME"
      ended=2
      ;;
    unknown/*) failed "asking the workers (${answer##*$'\n'})" ;;
    'exit 0/'*) ended=0 ;;
    'exit 2/yes' | 'exit 3/yes') ended=${job#exit } ;;
    crash/yes)
      crashes=$((crashes + 1))
      note "the run crashed, time $crashes; the last lines of its log:"
      step "${ssh[@]}" --worker=0 --command='tail -n 20 lrat_jax.log' || true
      if ((crashes >= MAX_CRASHES)); then ended=1; else relaunch "$@"; fi
      ;;
    *) relaunch "$@" ;;
  esac
}

relaunch() {
  if launch "$@"; then started=yes; else failed "starting the run"; fi
}

watch() {
  local answer vm job='' ended='' seen='' made=no started=no failures=0 crashes=0
  while [[ -z $ended ]]; do
    look_at_vm "$([[ $made == yes ]] && echo READY || echo NOT_FOUND)"
    if [[ $vm != "$seen" ]]; then note "the TPU VM is $vm"; fi
    seen=$vm
    case $vm in
      ready) tend "$@" ;;
      unknown) failed "asking for the TPU VM (${answer##*$'\n'})" ;;
      missing)
        started=no made=yes
        create || failed "creating the TPU VM"
        ;;
      gone)
        started=no crashes=0
        recreate || failed "creating the TPU VM"
        ;;
      failed)
        failed "the request for the TPU VM"
        [[ -n $ended ]] || recreate || failed "creating the TPU VM"
        ;;
    esac
    [[ -n $ended || $dry_run == yes ]] || sleep "$POLL_SECONDS"
  done
  note "the run ended with code $ended"
  if ((ended != 0)); then
    step "${ssh[@]}" --worker=all --command='tail -n 20 lrat_jax.log' || true
  fi
  if [[ $AFTER == delete ]]; then delete; else note "$TPU_NAME still exists, and costs money until it is deleted"; fi
  return "$ended"
}
