# shellcheck shell=bash disable=SC2154  # what is not assigned here is in tpu_vm.sh
# Monitors a TPU VM and the run on it: the part of tpu_vm.sh (which sources this file) for `watch` and `status`.
#
# The functions store their results in variables of their caller: answer, vm, job, and in `watch` also ended, started,
# failures and crashes.

# Prints the command that queries the state of a worker's job; a new machine, without the code, reports absent.
state_command() {
  local asked=(state)
  (($# == 0)) || asked+=("--workdir=$WORKDIR" "$@")
  echo "if test -f $worker; then bash $worker $(quoted "${asked[@]}"); else echo job=absent; fi"
}

# Sets `job` to the combined state of all workers: running, other (a run with other arguments), absent, exit CODE,
# crash, or unknown. The first argument is the reply that --dry-run assumes.
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

# Counts a failed command; sets `ended` when there are MAX_FAILURES failures in a row.
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

# Checks the job on a TPU VM that is ready, once; sets `ended` to the exit code of the run when it is over. An exit code
# other than 0 from before this `watch` is ignored: the user gave the command again, so the run is started again.
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
