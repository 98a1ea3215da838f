#!/usr/bin/env bash
# Makes the sdist and the wheel, installs each in a fresh environment, and lets each verify itself away from the tree.
# Usage: dist_check.sh PYTHON TORCH, where TORCH is a requirement such as torch==2.13.0
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 torch=$2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf dist build/lib build/lib.* build/bdist.* # setuptools would pack whatever an earlier build left there
"$python" -m build --no-isolation --skip-dependency-check --sdist
"$python" -m build --no-isolation --skip-dependency-check --wheel
ls -l dist

try() { # NAME, then what pip is to install
  local name=$1 environment=$work/$1
  shift
  echo "== install the $name in a fresh environment"
  "$python" -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$torch"
  "$environment/bin/python" -m pip install --quiet "setuptools>=77" ninja
  "$environment/bin/python" -m pip install --no-build-isolation "$@"
  (cd "$work" && "$environment/bin/python" -m fused_rnn verify --quick)
}
try wheel dist/*.whl
FUSED_RNN_CUDA=0 try sdist dist/*.tar.gz # the wheel has shown that the CUDA sources compile; they take minutes
