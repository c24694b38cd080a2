#!/bin/bash
# Runs diffusion_jax on all hosts of a Cloud TPU slice; docs/clusters.md shows a whole session.
usage='usage: scripts/tpu_vm.sh [--dry-run] COMMAND NAME [ARGUMENT ...]
  create NAME                    create a slice now
  queue NAME                     or queue for one, which may be a spot slice
  status NAME                    print the state of a queued slice
  install NAME                   copy this commit to all hosts, install it, mount NFS if that is set
  launch NAME CONFIG WORKDIR [--config.FIELD=VALUE ...]
                                 start, or resume, on all hosts in the background; --mode=sample and others too
  follow NAME                    print what the hosts print, until Ctrl-C
  stop NAME                      end the run with a checkpoint
  resume NAME CONFIG WORKDIR [--config.FIELD=VALUE ...]
                                 after a preemption: delete, queue, wait, install, launch
  fetch NAME FROM TO             copy a folder from the first host to here
  delete NAME | dequeue NAME     delete what create or queue made
--dry-run prints the commands instead. Variables:
  ZONE, such as us-east5-a       for all commands
  TYPE, such as v6e-16; RUNTIME, such as v2-alpha-tpuv6e; FLAGS, such as --spot
                                 for create, queue and resume; FLAGS may be empty
  NFS=HOST:/PATH                 for install and resume: mounted at /mnt/share'
set -euo pipefail

fail() {
  echo "tpu_vm.sh: $1" >&2
  exit 2
}

run() {
  if [[ $dry ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu_vm() { run gcloud compute tpus tpu-vm "$1" "$name" --zone="$ZONE" "${@:2}"; }
queued() { run gcloud compute tpus queued-resources "$1" "$name" --zone="$ZONE" "${@:2}"; }
on_all() { tpu_vm ssh --worker=all --command="$1"; }

slice() { # The flags of create and queue: "--version" or "--runtime-version", then FLAGS word by word.
  [[ ${TYPE:-} && ${RUNTIME:-} ]] || fail 'TYPE and RUNTIME are not set'
  read -ra more <<<"${FLAGS:-}"
  flags=(--accelerator-type="$TYPE" "$1=$RUNTIME" "${more[@]}")
}

queue() {
  slice --runtime-version
  queued create --node-id="$name" "${flags[@]}"
}

state() { queued describe --format='value(state.state)'; }

wait_until_active() {
  local now
  if [[ $dry ]]; then
    state
    return
  fi
  until now=$(state) && [[ $now == ACTIVE ]]; do
    [[ $now != FAILED && $now != SUSPENDED ]] || fail "$name is $now"
    echo "$name: $now"
    sleep 60
  done
}

install() {
  local archive=diffusion_jax.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:" --zone="$ZONE" --worker=all
  run rm "$archive"
  # Python comes with uv: the system's own is older than what diffusion_jax needs.
  on_all "set -e; mkdir -p diffusion_jax; tar -xzf $archive -C diffusion_jax; cd diffusion_jax
pip install --quiet --user uv
test -d .venv || ~/.local/bin/uv venv --quiet --seed --python 3.12 .venv
.venv/bin/pip install --quiet -r requirements-core.txt -r requirements-tf.txt -r requirements-tpu.txt"
  if [[ ${NFS:-} ]]; then
    on_all "sudo apt-get install -qq -y nfs-common && sudo mkdir -p /mnt/share
mountpoint -q /mnt/share || sudo mount -t nfs $NFS /mnt/share"
  fi
}

launch() {
  local arguments
  arguments=$(printf ' %q' "--config=$1" "--workdir=$2" "${@:3}")
  on_all "cd diffusion_jax
if kill -0 \$(cat run.pid) 2>/dev/null; then echo 'it runs already' >&2; exit 1; fi
nohup .venv/bin/python main.py$arguments >>run.log 2>&1 </dev/null & echo \$! >run.pid"
}

dry=
if [[ ${1:-} == --dry-run ]]; then
  dry=1
  shift
fi
command=${1:-} name=${2:-}
case $command in
  create | queue | status | install | follow | stop | delete | dequeue) least=0 most=0 ;;
  fetch) least=2 most=2 ;;
  launch | resume) least=2 most=$# ;;
  -h | --help)
    echo "$usage"
    exit
    ;;
  *) fail "unknown command '$command'; --help lists them" ;;
esac
[[ $name && $name != -* ]] || fail "$command: NAME is missing; --help shows how"
shift 2
(($# >= least && $# <= most)) || fail "$command: got $# arguments after NAME; --help shows how"
[[ ${ZONE:-} ]] || fail 'ZONE is not set, such as ZONE=us-east5-a'

case $command in
  create)
    slice --version
    tpu_vm create "${flags[@]}"
    ;;
  queue) queue ;;
  status) state ;;
  install) install ;;
  launch) launch "$@" ;;
  # Process 0 talks; errors come from any.
  follow) on_all 'tail -n 20 -F diffusion_jax/run.log' ;;
  stop) on_all "kill -TERM \$(cat diffusion_jax/run.pid)" ;;
  resume)
    slice --runtime-version # Fails before anything is deleted.
    if [[ ! $dry && $(state) == ACTIVE ]]; then
      fail "$name is ACTIVE, so nothing has to be created; use launch"
    fi
    queued delete --force --quiet
    queue
    wait_until_active
    install
    launch "$@"
    ;;
  fetch) run gcloud compute tpus tpu-vm scp --recurse "$name:$1" "$2" --zone="$ZONE" --worker=0 ;;
  delete) tpu_vm delete --quiet ;;
  dequeue) queued delete --force --quiet ;;
esac
