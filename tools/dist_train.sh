#!/usr/bin/env bash
# Train with several processes: tools/dist_train.sh CONFIG GPUS [options of train.py]
# Example, one machine:   tools/dist_train.sh configs/pretrain/bootmae_vitb.py 8
# Example, first of two:  NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 PORT=29500 tools/dist_train.sh CONFIG 8
# MAX_RESTARTS=3, on one machine: restart all processes up to 3 times if one dies; they resume from the last checkpoint.
# Without GPUs, the processes use the CPU (gloo). PORT (default 29500) must be free.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n '2,6s/^# //p' "$0"
  exit 0
fi
if (($# < 2)); then
  echo "error: usage: tools/dist_train.sh CONFIG GPUS [options of train.py]" >&2
  exit 2
fi
source "$(dirname "$0")/launch.sh"
launch train.py "$2" "$1" "${@:3}"
