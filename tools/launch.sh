# Shared by dist_train.sh and dist_test.sh: checks the number of processes and starts them with torchrun.
# Nodes: NNODES, NODE_RANK, MASTER_ADDR and PORT, as in OpenMMLab's scripts; MAX_RESTARTS is torchrun's.

launch() {  # launch SCRIPT GPUS ARGUMENT...
  local script=$1 gpus=$2
  shift 2
  local python=${PYTHON:-python}
  if ! command -v "$python" >/dev/null || ! "$python" -c 'import torch' 2>/dev/null; then
    python="$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python"  # the environment of `make install`
  fi
  if ! [[ $gpus =~ ^[1-9][0-9]*$ ]]; then
    echo "error: the number of GPUs must be a positive integer, but is '$gpus'" >&2
    return 2
  fi
  local there
  there=$("$python" -c 'import torch; print(torch.cuda.device_count())') || return 1
  if ((there == 0)); then
    echo "no GPU on this machine: $gpus gloo processes on the CPU" >&2
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) > gpus ? $(nproc) / gpus : 1))}
  elif ((gpus > there)); then
    echo "error: $gpus GPUs asked for, but this machine has $there" >&2
    return 2
  fi
  local address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500}
  local meet=(--node_rank="${NODE_RANK:-0}" --master_addr="$address" --master_port="$port")
  if ((${MAX_RESTARTS:-0} > 0 && ${NNODES:-1} > 1)); then
    # Each node counts its own restarts: a node without failures would not know of those of others.
    echo "error: MAX_RESTARTS is for one node; on several, start again with --resume" >&2
    return 2
  fi
  if ((${MAX_RESTARTS:-0} > 0)); then
    # Otherwise a restart uses the store of the first start, with addresses of dead processes, and hangs or fails.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    meet=(--rdzv_backend=c10d --rdzv_endpoint="$address:$port" --rdzv_id="$port-$(date +%s)" --max_restarts="$MAX_RESTARTS")
  fi
  "$python" -m torch.distributed.run --nnodes="${NNODES:-1}" --nproc_per_node="$gpus" "${meet[@]}" \
    "$(dirname "${BASH_SOURCE[0]}")/$script" --launcher pytorch "$@"
}
