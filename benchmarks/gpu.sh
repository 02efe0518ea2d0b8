#!/bin/bash
# usage: benchmarks/gpu.sh FOLDER
# Measures on a GPU, each result a file of FOLDER. Needs `pip install -e '.[bench,gpu]'`, a GPU that
# nothing else uses, and about ten minutes. A benchmark that fails leaves its log and does not keep
# the others from running.
set -u
out=${1:?expected a folder for the results}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$out/card.txt" || exit 2
failed=0
measure() {
  local name=$1; shift
  local from=$SECONDS
  timeout "${LIMIT:-600}" fgkd bench "$@" --device gpu --repeats 5 --seconds 0.2 \
    --output "$out/${name}_gpu.json" > "$out/$name.log" 2>&1 || failed=1
  echo "== $name: $((SECONDS - from)) s"
  grep -v -i warning "$out/$name.log" | tail -24
}
measure sampler sampler --against torch,copy --batch_size 64
measure msdn msdn --against torch,torch_one_product
measure step step --config classify_cub --against torch,torch_channels_last --batch_size 32
measure mcl mcl --against torch
measure detect detect --against torch
exit $failed
