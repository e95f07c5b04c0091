#!/bin/sh
# Runs the native engine's tests on a build that stops at the first invalid access or undefined operation.
# Arguments go to pytest. PYTHON and CXX name other programs than .venv/bin/python and c++.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
compiler=${CXX:-c++}
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT

QINCO_NATIVE_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1 -D_GLIBCXX_ASSERTIONS" \
    "$python" setup.py -q build_ext --build-lib "$built" --build-temp "$built/objects"

export QINCO_NATIVE_LIBRARY="$built/qinco/native/engine.so"
# Python and torch were built without the sanitizers, which must be there first, and leave memory to the system at exit.
export LD_PRELOAD="$($compiler -print-file-name=libasan.so) $($compiler -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export OMP_NUM_THREADS=1  # of torch; the engine makes its own
# Without this the tests would be skipped where the build failed or cannot be loaded.
"$python" -c 'from qinco.native.library import is_available; assert is_available(), "the sanitized build is not there"'
# Searches with trained models are left out: they take longest, and what they look at is how good the codes are. The
# sanitizers need more memory than a process may have that is given no threads.
"$python" -m pytest -q -k 'not trained and not without_threads' tests/unit/native tests/unit/engines/test_native_engine.py tests/unit/search/test_scan.py tests/unit/search/test_walk.py::test_the_compiled_walk_finds_what_arrays_do \
    tests/unit/training/test_gradients.py \
    tests/property/test_native.py tests/property/test_native_scan.py "$@"
