#!/bin/sh
# Runs the tests of engines, codecs and search once for each lower instruction set that the processor has, forced to it.
# The best one is what all other tests use.
# Arguments go to pytest. PYTHON names another program than .venv/bin/python.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
levels=$("$python" -c 'from qinco.native.library import LEVELS, level; print(*LEVELS[: LEVELS.index(level())])')

for level in $levels; do
    echo "QINCO_NATIVE_LEVEL=$level"
    QINCO_NATIVE_LEVEL=$level "$python" -m pytest -q --durations=0 --durations-min=5 tests/unit/engines \
        tests/unit/native tests/unit/codec tests/unit/search tests/unit/training/test_gradients.py \
        tests/property/test_encoding.py "$@"
done
