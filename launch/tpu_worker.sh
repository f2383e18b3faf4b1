#!/usr/bin/env bash
# The commands for one worker of a TPU VM. tpu_vm.sh calls this over ssh; there is no need to call it by hand.
#
#   setup SHARE            installs Python and packages next to the code; mounts SHARE at /mnt/lrat_jax
#   idle                   fails if a run is going on
#   start SHARE ARGUMENT…  runs `python -m lrat_jax.main ARGUMENT…` in the background
#   state [ARGUMENT…]      prints job=running, job=absent, job=other (running with other arguments) or job=exit CODE
#   stop                   sends SIGTERM; returns when the run has saved and ended
#
# The job is a systemd unit: it outlives the ssh session, its exit code can be queried, and when the machine is shut
# down (as in a preemption), systemd first sends it SIGTERM and keeps network and shared folder until it has ended.
set -euo pipefail

readonly code="$HOME/lrat_jax" script="$HOME/lrat_jax_run.sh" log="$HOME/lrat_jax.log"
readonly mount=/mnt/lrat_jax job=lrat_jax.service share_unit=lrat_jax_share.service

say() {
  printf '%s: %s\n' "$(hostname)" "$*" >&2
}

install_packages() {
  local uv="$HOME/.local/bin/uv"
  # The images of TPU VMs have Python 3.10; uv installs a newer one.
  [[ -x $uv ]] || curl --location --silent --show-error --fail https://astral.sh/uv/install.sh | sh
  cd "$code"
  "$uv" venv --quiet --python 3.12 .venv
  "$uv" pip install --quiet --requirement requirements.txt 'jax[tpu]'
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc release
  release=$(lsb_release --codename --short)
  curl --silent --show-error --fail https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$release main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update --quiet
  sudo apt-get install --quiet --yes gcsfuse
}

mount_bucket() {
  local bucket=$1 seconds
  command -v gcsfuse >/dev/null || install_gcsfuse
  sudo systemctl reset-failed "$share_unit" 2>/dev/null || true
  # A unit, because a background process of this session would end at a shutdown before the job has saved.
  sudo systemd-run --unit="$share_unit" --uid="$(id --user)" --gid="$(id --group)" --property=Restart=on-failure \
    --property=After=network-online.target \
    gcsfuse --foreground --implicit-dirs --rename-dir-limit=10000 "$bucket" "$mount"
  for ((seconds = 0; seconds < 60; seconds++)); do
    mountpoint --quiet "$mount" && return
    sleep 1
  done
  say "gs://$bucket did not appear at $mount; see: journalctl --unit=$share_unit"
  return 1
}

mount_share() {
  local share=$1
  if mountpoint --quiet "$mount"; then return; fi
  sudo mkdir --parents "$mount"
  sudo chown "$(id --user):$(id --group)" "$mount"
  case $share in
    '') say "nothing is shared: $mount is on this worker's own disk" ;;
    gs://*) mount_bucket "${share#gs://}" ;;
    *)
      command -v mount.nfs >/dev/null || sudo apt-get install --quiet --yes nfs-common
      sudo mount --types nfs "$share" "$mount"
      ;;
  esac
}

# Prints the script of the job. The job is a script because systemd would expand $ and % in arguments.
write_script() {
  printf '#!/usr/bin/env bash\n# The run that tpu_worker.sh started here last.\ncd %q\n' "$code"
  printf 'exec .venv/bin/python -u -m lrat_jax.main'
  printf ' %q' "$@"
  printf '\n'
}

# Prints the state of the job's unit: absent, running, or exit CODE.
phase() {
  local key value
  local -A unit=()
  while IFS='=' read -r key value; do
    unit[$key]=$value
  done < <(systemctl show "$job" --property=LoadState,ActiveState,SubState,ExecMainCode,ExecMainStatus)
  case ${unit[LoadState]}/${unit[ActiveState]}/${unit[SubState]} in
    not-found/* | */inactive/*) echo absent ;;
    # ExecMainCode 1: it exited; 2 and 3: a signal killed it, and the status is the number of the signal.
    */active/exited | */failed/*)
      ((unit[ExecMainCode] == 1)) || ((unit[ExecMainStatus] += 128))
      echo "exit ${unit[ExecMainStatus]}"
      ;;
    *) echo running ;;
  esac
}

state() {
  local phase same=yes
  phase=$(phase)
  if (($# > 0)) && ! write_script "$@" | cmp --quiet - "$script"; then same=no; fi
  case $phase/$same in
    */yes) echo "job=$phase" ;;
    running/no) echo job=other ;;
    *) echo job=absent ;;
  esac
}

idle() {
  [[ $(phase) != running ]] || {
    say 'a run is going on here; stop it first'
    return 1
  }
}

start() {
  local share=$1
  shift
  idle
  if [[ -n $share ]] && ! mountpoint --quiet "$mount"; then
    say "$share is not mounted at $mount; run setup again"
    return 1
  fi
  write_script "$@" >"$script"
  # The unit of a run that has ended still occupies the name.
  sudo systemctl stop "$job" 2>/dev/null || true
  sudo systemctl reset-failed "$job" 2>/dev/null || true
  # TPU drivers and checkpoints of many files need these limits.
  sudo systemd-run --unit="$job" --uid="$(id --user)" --gid="$(id --group)" --remain-after-exit \
    --property="After=network-online.target $share_unit" \
    --property=KillMode=mixed --property=TimeoutStopSec=300 \
    --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576 \
    --property="StandardOutput=append:$log" --property="StandardError=append:$log" \
    /bin/bash "$script"
}

case ${1-} in
  setup)
    install_packages
    mount_share "$2"
    ;;
  idle | start | state) "$@" ;;
  stop) sudo systemctl stop "$job" ;;
  *)
    say "error: '${1-}' is unknown; choose from idle, setup, start, state, stop."
    exit 2
    ;;
esac
