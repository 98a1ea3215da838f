#!/usr/bin/env bash
# On a machine with a GPU, which may be offline: builds, checks and measures the CUDA engine within ten minutes.
# Usage: gpu_check.sh OUT_DIR [--quick | --full | --rehearse] [--only STEP ...]     (PYTHON names the interpreter)
# What it does and leaves in OUT_DIR: gpu_check.py. All that is printed is in OUT_DIR/gpu_check.log too.
set -euo pipefail
cd "$(dirname "$0")/.."

out=$(realpath -m "${1:?usage: gpu_check.sh OUT_DIR [--quick | --full | --rehearse] [--only STEP ...]}")
export PATH=$PATH:/usr/local/cuda/bin PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out"
"${PYTHON:-python3}" scripts/gpu_check.py "$out" "${@:2}" 2>&1 | tee "$out/gpu_check.log"
