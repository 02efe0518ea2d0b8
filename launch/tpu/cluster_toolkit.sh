#!/usr/bin/env bash
# A training as a job of Cluster Toolkit on a GKE cluster with TPUs; TPU7x is reached this way.
#
#   export CLUSTER=pods LOCATION=us-central1 PROJECT=mine
#   export IMAGE=REGISTRY/fgkd:tpu MOUNT=runs:/runs:rw
#   launch/tpu/cluster_toolkit.sh birds v5litepod-16 --config=classify_birds \
#     --config.train.batch_size=16 --workdir=/runs/birds
#
# The image is that of launch/Dockerfile with EXTRAS=tpu. MOUNT, in the form that gcluster takes,
# brings a volume (a claim, gs://BUCKET or a folder of the hosts) that all pods share, writable. In
# the image data sets lie in /runs/data, unless a config says where.
# RESTARTS is how often the job may start anew (50); DRY_RUN=FILE writes the manifest there and
# submits nothing.
set -euo pipefail

fail() {
  echo "cluster_toolkit.sh: error: $1" >&2
  exit 2
}

for name in CLUSTER LOCATION PROJECT IMAGE MOUNT; do
  [[ -n "${!name:-}" ]] || fail "$name is not set; see the head of this script"
done
[[ $# -ge 3 ]] || fail "expected NAME COMPUTE_TYPE and the flags of fgkd train"
[[ "$MOUNT" == *:rw ]] || fail "MOUNT is $MOUNT; expected it to end with :rw"
command -v gcluster >/dev/null || fail "gcluster is not on the path; expected Cluster Toolkit"
name=$1 type=$2
shift 2

options=(--mount="$MOUNT" --restarts="${RESTARTS:-50}" --grace-period=120s)
if [[ -n "${QUEUE:-}" ]]; then options+=(--queue="$QUEUE"); fi
if [[ -n "${DRY_RUN:-}" ]]; then options+=(--dry-run-out="$DRY_RUN"); fi
while IFS= read -r line; do
  options+=(--env="$line")
done < <(grep -v '^#' "$(dirname "$0")/../env/tpu.env")

gcluster job submit --cluster="$CLUSTER" --location="$LOCATION" --project="$PROJECT" \
  --name="$name" --image="$IMAGE" --compute-type="$type" "${options[@]}" \
  --command="fgkd train --detect_processes=on --device=tpu $(printf '%q ' "$@")"
