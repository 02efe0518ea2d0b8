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
# gcloud reaches several hosts only with a key that an agent holds. Once, after `create`, let it
# make the key; then, in every new shell, give that to an agent:
#   gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" --command=true
#   eval "$(ssh-agent)"; ssh-add ~/.ssh/google_compute_engine
#
# The workdir, data and weights lie on a file system that all hosts mount; say where data are with
# --config.data.data_dir. `train` shows the log and ends with the status of the run, or with 13
# where not all hosts told the same one. The run goes on where the connection breaks: `train` shows
# it again, and once it may be over, `train` with TPU_RUN set to what the hosts said. Each host
# keeps the log as fgkd.TPU_RUN.log.
# `stop` asks the run to save and to end with 75; the same `train` continues it. TPU_VERSION takes
# another image of the VMs, TPU_SPOT=1 VMs that may be taken away: after that delete, create,
# install and train again, and the run goes on from its newest checkpoint.
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

# Whether a run goes on, for a host.
# shellcheck disable=SC2016 # it is the host that expands
alive='alive() { grep -qs fgkd.status "/proc/$(cat fgkd.pid 2>/dev/null)/cmdline"; }'

# What a host runs, which gcloud repeats where the connection breaks. It starts the run unless one
# goes on or this one was started before; it shows the log, and ends with the status of the run, 13
# where it was killed. The files lie beside the environment; a signal to the group of the run leaves
# its shell, which writes the status.
run_on_host() {
  printf '%s\nid=%q run=%q\n' "$alive" "$1" "trap : TERM; $2; echo \$? >fgkd.status"
  cat <<'END'
if alive; then does="goes on"
elif [ "$(cat fgkd.id 2>/dev/null)" = "$id" ]; then does="has ended"
else
  does=begins
  rm -f fgkd.status
  echo "$id" >fgkd.id
  : >"fgkd.$id.log"
  setsid nohup bash -c "$run" >>"fgkd.$id.log" 2>&1 </dev/null &
  echo $! >fgkd.pid
fi
id=$(cat fgkd.id)
echo "tpu_vm.sh: the run of TPU_RUN=$id $does here"
tail --pid="$(cat fgkd.pid)" -n +1 -f "fgkd.$id.log"
status=$(cat fgkd.status 2>/dev/null || echo 13)
echo "tpu_vm.sh: fgkd ended with $status on $(hostname)"
exit "$status"
END
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
    [[ $# -eq 1 && -f "$1" ]] ||
      fail "install takes the wheel; make it with: python -m build --wheel"
    wheel=$(basename "$1")
    gcloud compute tpus tpu-vm scp "$1" "$TPU_NAME:" --zone="$TPU_ZONE" --worker=all
    # The images have Python 3.10; uv brings a newer one.
    on_all "python3 -m pip install --quiet --user uv &&
python3 -m uv venv --quiet --allow-existing --python 3.12 fgkd &&
python3 -m uv pip install --quiet --python fgkd/bin/python './${wheel}[tpu]'"
    ;;
  train)
    [[ $# -ge 1 ]] || fail "train takes the flags of fgkd train"
    id=${TPU_RUN:-$(date +%Y%m%d-%H%M%S)-$$}
    [[ "$id" =~ ^[A-Za-z0-9-]+$ ]] || fail "TPU_RUN is $id; expected what the hosts said"
    said=$(mktemp)
    trap 'rm -f "$said"' EXIT
    environment=$(grep -v '^#' "$(dirname "$0")/../env/tpu.env" | tr '\n' ' ')
    command="env ${environment}fgkd/bin/fgkd train --detect_processes=on --device=tpu"
    if hosts=$(gcloud compute tpus tpu-vm describe "$TPU_NAME" --zone="$TPU_ZONE" \
      --format="value(networkEndpoints.len())"); then
      on_all "$(run_on_host "$id" "$command $(printf '%q ' "$@")")" | tee "$said" || true
    fi
    # gcloud has statuses of its own, which are not those of the run.
    ended=$(grep -Eo 'fgkd ended with [0-9]+ on [^ ]+' "$said" | sort -u | cut -d' ' -f4) || true
    if [[ "$(uniq -c <<<"$ended")" =~ ^\ *"$hosts"\ ([0-9]+)$ ]]; then
      exit "${BASH_REMATCH[1]}"
    fi
    echo "tpu_vm.sh: not all hosts told how the run ended, or not the same" >&2
    exit 13
    ;;
  stop)
    on_all "$alive; if alive; then kill -TERM -- -\$(cat fgkd.pid); else echo no run goes on; fi"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$TPU_NAME" --zone="$TPU_ZONE" --quiet
    ;;
  *)
    fail "there is no action '$action'; $usage"
    ;;
esac
