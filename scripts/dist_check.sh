#!/usr/bin/env bash
# Makes the sdist and the wheel, and installs each in a fresh environment, and a clone in both of pip's ways; each must
# verify itself away from the tree. The CPU engine is compiled once more, for the sdist; the wheel has shown that the CUDA
# sources compile, which takes minutes.
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

environment=$work/environment # always the same place: torch's is in every compiler's command
verify() {                    # where
  (cd "$1" && "$environment/bin/python" -m fused_rnn verify --quick)
}
try() { # NAME, then what pip is to install
  echo "== install the $1 in a fresh environment"
  shift
  rm -rf "$environment"
  "$python" -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$torch"
  "$environment/bin/python" -m pip install --quiet "setuptools>=77" ninja
  "$environment/bin/python" -m pip install --quiet --no-build-isolation "$@"
  verify "$work"
}

try wheel dist/*.whl

export FUSED_RNN_CUDA=0
mkdir "$work/source" "$work/clone"
tar -xf dist/*.tar.gz -C "$work/source" --strip-components=1
try sdist "$work/source"

git ls-files -z | xargs -0 cp --parents --preserve=timestamps --target-directory "$work/clone"
mkdir "$work/clone/build"
cp -a "$work/source/build/native" "$work/clone/build/" # what the clone lacks, or has otherwise, is compiled
try clone "$work/clone"
if verify "$work/clone" 2> "$work/said"; then
  echo "a clone without a library of its own must not run" >&2
  exit 1
fi
grep --quiet --fixed-strings -- "-e $work/clone" "$work/said" || {
  cat "$work/said" >&2
  exit 1
}
try "clone, editable," --editable "$work/clone"
verify "$work/clone"
