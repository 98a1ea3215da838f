#!/usr/bin/env bash
# Builds, tests and measures the CUDA engine on a machine with a GPU, within ten minutes; works offline.
# Usage: gpu_check.sh OUT_DIR [--quick | --full | --rehearse] [--only STEP ...]     (PYTHON names the interpreter)
# See gpu_check.py for the steps and OUT_DIR's files; the output is also in OUT_DIR/gpu_check.log.
set -euo pipefail
cd "$(dirname "$0")/.."

out=$(realpath -m "${1:?usage: gpu_check.sh OUT_DIR [--quick | --full | --rehearse] [--only STEP ...]}")
export PATH=$PATH:/usr/local/cuda/bin PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out"
"${PYTHON:-python3}" scripts/gpu_check.py "$out" "${@:2}" 2>&1 | tee "$out/gpu_check.log"
