#!/usr/bin/env bash
# Train on a Slurm cluster: [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=12] [SRUN_ARGS=...] \
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]
# Example: GPUS=16 tools/slurm_train.sh gpu bootmae configs/pretrain/bootmae_vitb.py work_dirs/bootmae_vitb
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n '2,4s/^# //p' "$0"
  exit 0
fi
if (($# < 4)); then
  echo "error: usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]" >&2
  exit 2
fi
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
if ((gpus % per_node)); then
  echo "error: GPUS=$gpus is not a multiple of GPUS_PER_NODE=$per_node" >&2
  exit 2
fi
command -v srun >/dev/null || { echo "error: srun was not found; is this a Slurm cluster?" >&2; exit 1; }
# shellcheck disable=SC2086  # SRUN_ARGS is several words
srun --partition="$1" --job-name="$2" --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
  --cpus-per-task="${CPUS_PER_TASK:-12}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$3" --work-dir "$4" --launcher slurm "${@:5}"
