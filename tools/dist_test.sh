#!/usr/bin/env bash
# Evaluate with several processes: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
# Example: tools/dist_test.sh configs/pretrain/bootmae_vitb.py work_dirs/bootmae_vitb/epoch_800.pth 8
# For several nodes and machines without GPUs, see tools/dist_train.sh.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n '2,4s/^# //p' "$0"
  exit 0
fi
if (($# < 3)); then
  echo "error: usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]" >&2
  exit 2
fi
source "$(dirname "$0")/launch.sh"
launch test.py "$3" "$1" "$2" "${@:4}"
