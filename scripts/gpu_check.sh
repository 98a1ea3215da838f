#!/usr/bin/env bash
# On a machine with a GPU, which may be offline: builds with CUDA, checks the CUDA path, measures the machine.
# Usage: gpu_check.sh OUT_DIR [--quick | --rehearse]     (see gpu_check.py; PYTHON names the interpreter)
# Leaves baseline.json and gpu_check.log in OUT_DIR. With --rehearse it uses what is built already, and no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

out=$(realpath -m "${1:?usage: gpu_check.sh OUT_DIR [--quick | --rehearse]}")
mode=${2:-}
python=${PYTHON:-python3}
export PATH=$PATH:/usr/local/cuda/bin PYTHONPATH=$PWD PYTHONUNBUFFERED=1

failed=()
step() { # a step that fails must not keep the others from running: time on such a machine is dear
  echo "== $* ($SECONDS s)"
  "$@" || failed+=("$*")
}

install_offline() { # as a user without a network would
  local target
  target=$(mktemp -d)
  "$python" -m pip install --no-build-isolation --no-deps --no-index --target "$target" . &&
    (cd "$target" && PYTHONPATH=$target "$python" -m fused_rnn info)
}

main() {
  if [[ $mode != --rehearse ]]; then
    step nvidia-smi
    step nvcc --version
    export FUSED_RNN_CUDA=1
    step "$python" setup.py build_ext --inplace
    step install_offline
  fi
  step "$python" -m fused_rnn info
  step "$python" scripts/gpu_check.py "$out" $mode
  for name in "${failed[@]}"; do echo "FAILED: $name"; done
  return "${#failed[@]}"
}

mkdir -p "$out"
main 2>&1 | tee "$out/gpu_check.log"
