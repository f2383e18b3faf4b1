#!/usr/bin/env bash
# Runs lrat_jax on a Cloud TPU VM, on one host or a slice of several, and resumes the run after preemptions.
#
#   launch/tpu_vm.sh [--dry-run] COMMAND [ARGUMENT…]
#
#   rehearse ARGUMENT…  compiles the run for ACCELERATOR_TYPE here, before anything is rented, and prints the memory
#                    per chip and the collectives; needs Python with lrat_jax and libtpu (pip install ".[rehearse]"),
#                    but no TPU
#   create           requests the TPU VM
#   setup            installs the code and its packages on every worker, and mounts SHARE there
#   run ARGUMENT…    starts `python -m lrat_jax.main ARGUMENT…` on every worker, in the background
#   watch ARGUMENT…  create, setup and run, repeated after every preemption, until the run has ended; its exit code is
#                    that of the run: 0 done, 2 bad input, 3 a metric was not finite; or 1 if `watch` gave up
#   status           prints the state of the TPU VM, and of the run on each worker
#   logs             follows the log of worker 0
#   stop             sends SIGTERM: the run saves and ends (code 75); stop `watch` first, or it restarts the run
#   fetch [--checkpoints]  copies the results to RESULTS, optionally with the checkpoints
#   delete           deletes the TPU VM
#
#   --dry-run        prints the exact commands and runs none; for `watch`, those of a run without problems
#
# Variables, from the environment:
#   TPU_NAME          a name of your choice                                                required
#   ZONE              the zone, such as us-west4-a                                         required
#   PROJECT           the project that is billed                                           gcloud's default
#   ACCELERATOR_TYPE  the type of TPU and the number of chips or cores                     v5litepod-8
#   TOPOLOGY          its grid of chips, such as v5e:2x4, for `rehearse`                   the one for the type
#   RUNTIME_VERSION   the image                                                            the one for the type
#   PROVISION         queued-spot, queued, spot or on-demand; queued: waits for free       queued-spot
#                     capacity; spot: cheap, but can be preempted
#   CREATE_FLAGS      more flags for `gcloud … create`, separated by spaces                none
#   SHARE             gs://BUCKET or HOST:/EXPORT (NFS), mounted on every worker at        none
#                     /mnt/lrat_jax; without it, a run on one host uses that host's disk.
#                     Required by `watch` and by slices of more than one host
#   WORKDIR           the run's workdir on the workers                                     /mnt/lrat_jax/runs/TPU_NAME
#   REPO              a git URL to install from; empty: this checkout                      empty
#   REF               the commit, branch or tag                                            HEAD
#   RESULTS           the local folder for the results of `fetch`                          runs/TPU_NAME
#   POLL_SECONDS      seconds between two checks by `watch`                                60
#   MAX_FAILURES      `watch` gives up after this many failed gcloud commands in a row     10
#   MAX_CRASHES       `watch` gives up after this many crashes (exit codes other than      5
#                     0, 2, 3, 75) without a preemption in between
#   AFTER             keep or delete: what `watch` does with the TPU VM at the end         keep
#
# gcloud must be logged in here. The workers access the bucket as their service account; no secret passes through here.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root mount=/mnt/lrat_jax worker=lrat_jax/launch/tpu_worker.sh

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

note() {
  [[ $dry_run == yes ]] || printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2
}

# Prints the arguments as one line, quoted for a shell.
quoted() {
  local word
  local -a words=()
  for word in "$@"; do
    if [[ $word =~ ^[[:alnum:]_./:=,@%+-]+$ ]]; then words+=("$word"); else words+=("${word@Q}"); fi
  done
  printf '%s\n' "${words[*]}"
}

# Runs a command; --dry-run only prints it.
step() {
  if [[ $dry_run == yes ]]; then
    quoted "$@"
  else
    printf '+ %s\n' "$(quoted "$@")" >&2
    "$@"
  fi
}

# Sets `answer` to the output of a command; --dry-run prints the command and uses the first argument as its output.
ask() {
  answer=$1
  if [[ $dry_run == yes ]]; then quoted "${@:2}"; else answer=$("${@:2}" 2>&1); fi
}

runtime_for() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "RUNTIME_VERSION is missing; none is known for ACCELERATOR_TYPE=$1." ;;
  esac
}

# Prints the topology of a slice; v5p names contain the number of cores, two per chip.
topology_for() {
  local generation=${1%%-*} count=${1##*-} grid=''
  case $generation in
    v5litepod | v6e)
      case $count in
        4) grid=2x2 ;; 8) grid=2x4 ;; 16) grid=4x4 ;; 32) grid=4x8 ;;
        64) grid=8x8 ;; 128) grid=8x16 ;; 256) grid=16x16 ;;
      esac
      ;;
    v5p)
      case $count in
        8) grid=2x2x1 ;; 16) grid=2x2x2 ;; 32) grid=2x2x4 ;; 64) grid=2x4x4 ;;
        128) grid=4x4x4 ;; 256) grid=4x4x8 ;; 512) grid=4x8x8 ;; 1024) grid=8x8x8 ;;
      esac
      ;;
  esac
  [[ -n $grid ]] || fail "TOPOLOGY is missing; none is known for ACCELERATOR_TYPE=$1."
  [[ $generation != v5litepod ]] || generation=v5e
  echo "$generation:$grid"
}

rehearse() {
  : "${ACCELERATOR_TYPE:=v5litepod-8}"
  TOPOLOGY=${TOPOLOGY:-$(topology_for "$ACCELERATOR_TYPE")}
  step python -m lrat_jax.main "$@" --dry_run --topology="$TOPOLOGY"
}

read_variables() {
  local name
  for name in TPU_NAME ZONE; do
    [[ -n ${!name-} ]] || fail "$name is missing; the head of launch/tpu_vm.sh explains all variables."
  done
  : "${ACCELERATOR_TYPE:=v5litepod-8}" "${PROVISION:=queued-spot}" "${REF:=HEAD}" "${AFTER:=keep}"
  : "${SHARE=}" "${REPO=}" "${WORKDIR:=$mount/runs/$TPU_NAME}" "${RESULTS:=runs/$TPU_NAME}"
  : "${POLL_SECONDS:=60}" "${MAX_FAILURES:=10}" "${MAX_CRASHES:=5}"
  RUNTIME_VERSION=${RUNTIME_VERSION:-$(runtime_for "$ACCELERATOR_TYPE")}
  [[ $PROVISION =~ ^(queued-spot|queued|spot|on-demand)$ ]] ||
    fail "PROVISION=$PROVISION is unknown; choose from queued-spot, queued, spot, on-demand."
  [[ $AFTER =~ ^(keep|delete)$ ]] || fail "AFTER=$AFTER is unknown; choose from keep, delete."
  [[ -z $SHARE || $SHARE =~ ^gs://[^/]+$ || $SHARE =~ ^[^/:]+:/([^/].*)?$ ]] ||
    fail "SHARE=$SHARE is neither gs://BUCKET nor HOST:/EXPORT."
  [[ $WORKDIR == /* ]] || fail "WORKDIR=$WORKDIR is not an absolute path."
  for name in POLL_SECONDS MAX_FAILURES MAX_CRASHES; do
    [[ ${!name} =~ ^[0-9]+$ ]] || fail "$name=${!name} is not a whole number."
  done
  read -ra create_flags <<<"${CREATE_FLAGS-}"
  place=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --quiet)
  ssh=(gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${place[@]}")
  scp=(gcloud compute tpus tpu-vm scp "${place[@]}")
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/lrat_jax
}

check_arguments() {
  local argument config=no
  for argument in "$@"; do
    case $argument in
      --config=*) config=yes ;;
      --workdir*) fail "$argument: set WORKDIR instead." ;;
      --*) ;;
      *) fail "'$argument' is not understood; options are written --name=value." ;;
    esac
  done
  [[ $config == yes ]] || fail "--config is missing; try --config=configs/lrat.py:cifar10."
}

create() {
  local -a tier=()
  [[ $PROVISION != *spot ]] || tier=(--spot)
  case $PROVISION in
    queued*)
      step gcloud compute tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" "${place[@]}" \
        --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" "${tier[@]}" "${create_flags[@]}"
      ;;
    *)
      step gcloud compute tpus tpu-vm create "$TPU_NAME" "${place[@]}" \
        --accelerator-type="$ACCELERATOR_TYPE" --version="$RUNTIME_VERSION" "${tier[@]}" "${create_flags[@]}"
      ;;
  esac
}

delete() {
  case $PROVISION in
    queued*) step gcloud compute tpus queued-resources delete "$TPU_NAME" "${place[@]}" --force ;;
    *) step gcloud compute tpus tpu-vm delete "$TPU_NAME" "${place[@]}" ;;
  esac
}

# The commands are joined by &&, because `watch` calls these functions where bash does not stop at an error.
setup() {
  local archive=$cache/$TPU_NAME.tar.gz unpack
  if [[ -n $REPO ]]; then
    unpack="git clone --quiet -- $(quoted "$REPO") lrat_jax && git -C lrat_jax checkout --quiet $(quoted "$REF")"
  else
    unpack='mkdir lrat_jax && tar -xzf lrat_jax.tar.gz -C lrat_jax'
    step mkdir -p "$cache" &&
      step git -C "$root" archive --format=tar.gz --output="$archive" "$REF" &&
      step "${scp[@]}" --worker=all "$archive" "$TPU_NAME:lrat_jax.tar.gz" || return
  fi
  # Never replace the code during a run.
  unpack="if test -f $worker; then bash $worker idle; fi && rm -rf lrat_jax && $unpack"
  step "${ssh[@]}" --worker=all --command="$unpack && bash $worker setup $(quoted "$SHARE")"
}

start() {
  step "${ssh[@]}" --worker=all --command="bash $worker start $(quoted "$SHARE" "--workdir=$WORKDIR" "$@")"
}

status() {
  local answer vm
  look_at_vm READY
  note "the TPU VM is $vm (${answer##*$'\n'})"
  [[ $vm != ready ]] || step "${ssh[@]}" --worker=all --command="$(state_command)"
}

fetch() {
  local archive=$cache/${TPU_NAME}_results.tar.gz folder='' leave_out=(--exclude='^checkpoints/.*')
  [[ ${1-} != --checkpoints ]] || leave_out=()
  step mkdir -p "$RESULTS"
  [[ $WORKDIR != "$mount"/* ]] || folder=${WORKDIR#"$mount"/}
  if [[ $SHARE == gs://* && -n $folder ]]; then
    # Directly from the bucket, which also works when the TPU VM is gone.
    step gcloud storage rsync "$SHARE/$folder" "$RESULTS" --recursive "${leave_out[@]}" ${PROJECT:+--project="$PROJECT"}
    return
  fi
  ((${#leave_out[@]} == 0)) || leave_out=(--exclude=./checkpoints)
  step mkdir -p "$cache"
  step "${ssh[@]}" --worker=0 --command="tar -czf results.tar.gz $(quoted "${leave_out[@]}" -C "$WORKDIR" .)"
  step "${scp[@]}" --worker=0 "$TPU_NAME:results.tar.gz" "$archive"
  step tar -xzf "$archive" -C "$RESULTS"
}

# Sets REF to a fixed commit, so that all machines of a `watch` get the same code even after new commits here.
pin_ref() {
  local commit
  [[ -z $REPO ]] || return 0
  commit=$(git -C "$root" rev-parse --quiet --verify "$REF^{commit}") || fail "REF=$REF is not a commit of $root."
  REF=$commit
  [[ -z $(git -C "$root" status --porcelain) ]] || note "what is not committed here is not sent to the workers"
}

# shellcheck source=launch/tpu_watch.sh
source "$root/launch/tpu_watch.sh"

main() {
  local dry_run=no command
  if [[ ${1-} == --dry-run ]]; then
    dry_run=yes
    shift
  fi
  command=${1-}
  shift || true
  case $command in
    rehearse | create | setup | run | watch | status | logs | stop | fetch | delete) ;;
    help | --help | -h)
      sed -n '2,/^set/ s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      return
      ;;
    *)
      fail "'$command' is unknown;" \
        "choose from rehearse, create, setup, run, watch, status, logs, stop, fetch, delete, help."
      ;;
  esac
  if [[ $command == rehearse ]]; then
    check_arguments "$@"
    rehearse "$@"
    return
  fi
  read_variables
  case $command in
    run | watch) check_arguments "$@" ;;
    fetch) [[ $# == 0 || $* == --checkpoints ]] || fail "'$*' is not understood; fetch takes --checkpoints." ;;
    *) (($# == 0)) || fail "'$*' is not understood; $command takes no arguments." ;;
  esac
  case $command in
    run) start "$@" ;;
    watch)
      [[ -n $SHARE ]] || fail "SHARE is missing; a run can only go on from a folder that outlives the TPU VM."
      [[ $WORKDIR == "$mount"/* ]] || fail "WORKDIR=$WORKDIR is not below $mount, where SHARE is mounted."
      pin_ref
      watch "$@"
      ;;
    setup)
      pin_ref
      setup
      ;;
    logs) step "${ssh[@]}" --worker=0 --command='tail -n 200 -F lrat_jax.log' ;;
    stop) step "${ssh[@]}" --worker=all --command="bash $worker stop" ;;
    *) "$command" "$@" ;;
  esac
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || fail "bash $BASH_VERSION is too old; this needs 4.4 or newer."
main "$@"
