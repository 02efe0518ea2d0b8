#!/usr/bin/env bash
# A training on a slice of TPU VMs (up to v6e), from any machine with gcloud.
#
#   export TPU_NAME=birds TPU_ZONE=us-west4-a TPU_TYPE=v5litepod-16
#   launch/tpu/tpu_vm.sh create
#   launch/tpu/tpu_vm.sh install dist/fgkd_jax-0.1.0-py3-none-any.whl
#   launch/tpu/tpu_vm.sh train --config classify_birds --workdir /mnt/runs/birds
#   launch/tpu/tpu_vm.sh delete
#
# The workdir lies on a file system that all hosts mount. `train` ends with the status of the run;
# at 75 it was asked to stop, and the same command continues it.
set -euo pipefail

usage="usage: tpu_vm.sh create | install WHEEL | train FLAGS ... | delete"

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

[[ $# -ge 1 ]] || fail "$usage"
need TPU_NAME "the name of the slice"
need TPU_ZONE "a zone such as us-west4-a"
command -v gcloud >/dev/null || fail "gcloud is not on the path; expected the Google Cloud CLI"
action=$1
shift

case "$action" in
  create)
    need TPU_TYPE "an accelerator type such as v5litepod-16"
    options=()
    if [[ -n "${TPU_SPOT:-}" ]]; then options+=(--spot); fi
    gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$TPU_ZONE" \
      --accelerator-type="$TPU_TYPE" --version="${TPU_VERSION:-tpu-ubuntu2204-base}" \
      "${options[@]}"
    ;;
  install)
    [[ $# -eq 1 && -f "$1" ]] || fail "install takes the wheel; make it with: python -m build --wheel"
    wheel=$(basename "$1")
    gcloud compute tpus tpu-vm scp "$1" "$TPU_NAME:" --zone="$TPU_ZONE" --worker=all
    on_all "python3 -m venv fgkd && fgkd/bin/pip install --quiet './${wheel}[tpu]'"
    ;;
  train)
    [[ $# -ge 1 ]] || fail "train takes the flags of fgkd train"
    environment=$(grep -v '^#' "$(dirname "$0")/../env/tpu.env" | tr '\n' ' ')
    on_all "env ${environment}fgkd/bin/fgkd train --detect_processes=on $(printf '%q ' "$@")"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$TPU_NAME" --zone="$TPU_ZONE" --quiet
    ;;
  *)
    fail "there is no action '$action'; $usage"
    ;;
esac
