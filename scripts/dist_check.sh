#!/usr/bin/env bash
# Builds the sdist and the wheel, for every Linux since glibc 2.28, and installs them, and a clone both regularly and
# editable; each must pass verify outside the tree. The wheel gets a fresh environment without a compiler; the others
# share one that borrows torch from PYTHON's, with which the tree was built: only what differs from it is compiled again.
# Usage: dist_check.sh PYTHON TORCH, where TORCH is a requirement such as torch==2.13.0
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 torch=$2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf dist build/lib build/lib.* build/bdist.* # setuptools would pack leftovers of earlier builds
"$python" -m build --no-isolation --skip-dependency-check --sdist
"$python" -m build --no-isolation --skip-dependency-check --wheel --outdir "$work/wheel"
"$python" scripts/manylinux.py "$work"/wheel/*.whl dist
ls -l dist

verify() { # ENVIRONMENT, and where
  (cd "$2" && "$1/bin/python" -m fused_rnn verify --quick)
}

echo "== install the wheel in a fresh environment, where there is no compiler"
fresh=$work/fresh
"$python" -m venv "$fresh"
"$fresh/bin/python" -m pip install --quiet ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$torch"
(
  export PATH=$fresh/bin
  hash -r
  if command -v c++ g++ gcc cc clang ninja; then
    echo "there must be no compiler here" >&2
    exit 1
  fi
  "$fresh/bin/python" -m pip install --quiet --only-binary :all: dist/*.whl
  verify "$fresh" "$work"
  "$fresh/bin/fused-rnn" --version
)

packages() { # PYTHON
  "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}
borrowing=$work/borrowing
"$python" -m venv --without-pip "$borrowing" # pip, too, is borrowed
packages "$python" > "$(packages "$borrowing/bin/python")/borrowed.pth"
"$borrowing/bin/python" -m pip install --quiet --ignore-installed ninja # it looks for its program beside python
try() { # NAME, then what pip is to install
  echo "== install the $1"
  "$borrowing/bin/python" -m pip uninstall --quiet --yes fused_rnn # the last one
  "$borrowing/bin/python" -m pip install --quiet --no-build-isolation --no-deps "${@:2}"
  verify "$borrowing" "$work"
  "$borrowing/bin/fused-rnn" --version
}
with_objects() { # FOLDER with sources; what was compiled here is taken over
  mkdir "$1/build"
  cp -a build/native "$1/build/"
}

mkdir "$work/source" "$work/clone"
tar -xf dist/*.tar.gz -C "$work/source" --strip-components=1
with_objects "$work/source"
try sdist "$work/source"

git ls-files -z | xargs -0 cp --parents --preserve=timestamps --target-directory "$work/clone"
with_objects "$work/clone"
try clone "$work/clone"
if verify "$borrowing" "$work/clone" 2> "$work/said"; then
  echo "a clone without a library of its own must not run" >&2
  exit 1
fi
grep --quiet --fixed-strings -- "-e $work/clone" "$work/said" || {
  cat "$work/said" >&2
  exit 1
}
try "clone, editable," --editable "$work/clone"
verify "$borrowing" "$work/clone"
