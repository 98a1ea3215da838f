#!/usr/bin/env bash
# Makes the sdist and the wheel, and installs each in a fresh environment, and a clone in both of pip's ways; each must
# verify itself away from the tree. What has been compiled in this tree is not compiled again for the copies.
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

verify() { # ENVIRONMENT, then where
  (cd "$2" && "$1/bin/python" -m fused_rnn verify --quick)
}
try() { # NAME, then what pip is to install
  local name=$1 environment=$work/$1
  shift
  echo "== install the $name in a fresh environment"
  "$python" -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$torch"
  "$environment/bin/python" -m pip install --quiet "setuptools>=77" ninja
  "$environment/bin/python" -m pip install --no-build-isolation "$@"
  verify "$environment" "$work"
}
with_objects() { # of this tree: what the copy lacks, or has otherwise, is compiled
  mkdir -p "$1/build"
  cp -a build/native "$1/build/"
}

try wheel dist/*.whl

mkdir "$work/source"
tar -xf dist/*.tar.gz -C "$work/source" --strip-components=1
with_objects "$work/source"
try sdist "$work/source"

mkdir "$work/clone"
git ls-files -z | xargs -0 cp --parents --preserve=timestamps --target-directory "$work/clone"
with_objects "$work/clone"
try clone "$work/clone"
rm -f "$work/clone/fused_rnn/_C.so"
if verify "$work/clone" "$work/clone" 2> "$work/said"; then
  echo "a clone without a library of its own must not run" >&2
  exit 1
fi
grep --quiet -- "-e \." "$work/said" || { cat "$work/said" >&2; exit 1; }
try editable --editable "$work/clone"
verify "$work/editable" "$work/clone"
