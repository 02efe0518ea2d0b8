#!/usr/bin/env bash
# A training on a slice of TPU VMs (up to v6e), from any machine with gcloud.
#
#   export TPU_NAME=birds TPU_ZONE=us-west4-a TPU_TYPE=v5litepod-16
#   launch/tpu/tpu_vm.sh create
#   launch/tpu/tpu_vm.sh install dist/fgkd_jax-0.1.0-py3-none-any.whl
#   launch/tpu/tpu_vm.sh train --config classify_birds --config.train.batch_size=16 \
#     --workdir /mnt/runs/birds
#   launch/tpu/tpu_vm.sh delete
#
# The workdir lies on a file system that all hosts mount. `train` shows the log and ends with the
# status of the run, which goes on where the connection breaks: the same command shows it again.
# `stop` asks the run to save and to end with 75; the same `train` continues it. TPU_VERSION takes
# another image of the VMs, TPU_SPOT=1 VMs that may be taken away.
set -euo pipefail

usage="usage: tpu_vm.sh create | install WHEEL | train FLAGS ... | stop | delete"

fail() {
  echo "tpu_vm.sh: error: $1" >&2
  exit 2
}

need() {
  [[ -n "${!1:-}" ]] || fail "$1 is not set; expected $2"
}

on_all() {
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" --worker=all --command="$1"
}

# The image that Google lists for a type.
version_of() {
  case "$1" in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "TPU_TYPE is $1, whose image is not known here; expected TPU_VERSION as well" ;;
  esac
}

# What a host runs: it starts the run unless one goes on, shows the log, and ends with its status,
# 13 where it was killed. The files lie beside the environment; a signal to the group of the run
# leaves its shell, which writes the status.
# shellcheck disable=SC2016 # it is the host that expands
run_on_host() {
  local run="trap : TERM; $1; echo \$? >fgkd.status"
  echo 'alive() { grep -qs fgkd.status "/proc/$(cat fgkd.pid 2>/dev/null)/cmdline"; }'
  echo 'if alive; then echo "tpu_vm.sh: a run goes on here; its log follows"'
  echo 'else rm -f fgkd.status; : >fgkd.log'
  echo "setsid nohup bash -c $(printf '%q' "$run") >>fgkd.log 2>&1 </dev/null & echo \$! >fgkd.pid; fi"
  echo 'tail --pid="$(cat fgkd.pid)" -n +1 -f fgkd.log'
  echo 'exit "$(cat fgkd.status 2>/dev/null || echo 13)"'
}

[[ $# -ge 1 ]] || fail "$usage"
need TPU_NAME "the name of the slice"
need TPU_ZONE "a zone such as us-west4-a"
command -v gcloud >/dev/null || fail "gcloud is not on the path; expected the Google Cloud CLI"
action=$1
shift

case "$action" in
  create)
    need TPU_TYPE "an accelerator type such as v5litepod-16"
    version=${TPU_VERSION:-$(version_of "$TPU_TYPE")}
    options=()
    if [[ -n "${TPU_SPOT:-}" ]]; then options+=(--spot); fi
    gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$TPU_ZONE" \
      --accelerator-type="$TPU_TYPE" --version="$version" "${options[@]}"
    ;;
  install)
    [[ $# -eq 1 && -f "$1" ]] || fail "install takes the wheel; make it with: python -m build --wheel"
    wheel=$(basename "$1")
    gcloud compute tpus tpu-vm scp "$1" "$TPU_NAME:" --zone="$TPU_ZONE" --worker=all
    # The images have Python 3.10; uv brings a newer one.
    on_all "python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing \
--python 3.12 fgkd && python3 -m uv pip install --quiet --python fgkd/bin/python './${wheel}[tpu]'"
    ;;
  train)
    [[ $# -ge 1 ]] || fail "train takes the flags of fgkd train"
    environment=$(grep -v '^#' "$(dirname "$0")/../env/tpu.env" | tr '\n' ' ')
    on_all "$(run_on_host \
      "env ${environment}fgkd/bin/fgkd train --detect_processes=on $(printf '%q ' "$@")")"
    ;;
  stop)
    on_all "kill -TERM -- -\$(cat fgkd.pid)"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$TPU_NAME" --zone="$TPU_ZONE" --quiet
    ;;
  *)
    fail "there is no action '$action'; $usage"
    ;;
esac
