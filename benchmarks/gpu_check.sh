#!/bin/bash
# usage: benchmarks/gpu_check.sh FOLDER CIFAR
# Shows on a GPU what no benchmark does: tests of ops and losses, and that a run started by
# launch/local/launch.py with the flags of launch/env/gpu.env ends with 75 at SIGTERM, goes on where
# it was, and ends with the weights of a run that nobody stopped, to the bit where XLA is told to be
# deterministic. CIFAR is a folder of CIFAR-10. Needs `pip install -e '.[test,gpu]'`, and about four
# minutes.
set -u
out=${1:?expected a folder for what is printed}
cifar=${2:?expected a folder of CIFAR-10}
mkdir -p "$out"
steps=${STEPS:-400}
platform=${PLATFORM:-cuda}
runs=$(mktemp -d)
failed=0

train() { # folder, end of the log's name
  exec timeout 150 python3 launch/local/launch.py --processes 1 --gpus 1 -- \
    fgkd train --config configs/mcl_cifar10.py:mcl,cifar_resnet32 --workdir "$runs/$1" \
    --config.data.data_dir="$cifar" --config.train.steps="$steps" \
    --config.train.eval_every=0 --config.checkpoint.every_steps=$((steps / 4)) \
    > "$out/$1$2.log" 2>&1
}
expect() { # status, expected, what
  echo "$3: ends with $1, $2 expected"
  [[ $1 == "$2" ]] || failed=1
}
set -a
# shellcheck source=/dev/null
. launch/env/gpu.env
set +a
# Without autotuning: it may choose other algorithms in every process.
export XLA_FLAGS="$XLA_FLAGS --xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
export XLA_PYTHON_CLIENT_PREALLOCATE=false
(train undisturbed "")
expect $? 0 "a run that nobody stops"
train stopped -first &
pid=$!
for _ in $(seq 1200); do
  [[ -d $runs/stopped/checkpoints/last/$((steps / 4)) ]] && break
  sleep 0.1
done
pkill -TERM -P "$pid" # launch.py, the child of timeout
wait "$pid"
expect $? 75 "a run that SIGTERM stops"
(train stopped -second)
expect $? 0 "the same, continued"
for name in undisturbed stopped; do
  fgkd export --workdir "$runs/$name" --output "$out/$name.safetensors" > "$out/export.log" 2>&1 || failed=1
  cp "$runs/$name/metrics.jsonl" "$out/$name.jsonl"
done
if cmp "$out/undisturbed.safetensors" "$out/stopped.safetensors"; then
  echo "the weights of both are equal to the bit"
else
  failed=1
fi
rm -f "$out"/*.safetensors

unset XLA_FLAGS
FGKD_TEST_PLATFORM=$platform,cpu JAX_DEFAULT_MATMUL_PRECISION=highest timeout 240 \
  python3 -m pytest -q -n 6 -p no:benchmark tests/ops tests/losses > "$out/tests.log" 2>&1 || failed=1
tail -25 "$out/tests.log"
exit $failed
