#!/usr/bin/env bash
# Builds the sdist and the wheel, installs each in a fresh environment, and a clone both regularly and editable; each must
# pass verify outside the tree. The sdist is compiled again, but without CUDA, which the wheel has covered.
# Usage: dist_check.sh PYTHON TORCH, where TORCH is a requirement such as torch==2.13.0
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 torch=$2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf dist build/lib build/lib.* build/bdist.* # setuptools would pack leftovers of earlier builds
"$python" -m build --no-isolation --skip-dependency-check --sdist
"$python" -m build --no-isolation --skip-dependency-check --wheel
ls -l dist

environment=$work/environment # always the same path, as torch's is in every compiler command
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
cp -a "$work/source/build/native" "$work/clone/build/" # only differences are compiled
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
