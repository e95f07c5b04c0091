"""Small inputs behind what users reported of other libraries: each script ends with 0 unless its fault is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from parity_files import PARITY

RUNNER = Path(__file__).parents[1] / "run_report.py"
SCRIPTS = sorted((PARITY.parent / "reports").glob("[0-9]*.py"))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SCRIPTS, reason="the reports are not beside the checkout")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the scripts keep the codec that they share."""
    return str(tmp_path_factory.mktemp("reports"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_no_fault_is_there(script, cache):
    command = [sys.executable, str(RUNNER), str(script)]
    # Its Ctrl-C comes after a second, when a fast processor is done with what is to be interrupted.
    slowly = {"QINCO_NATIVE_LEVEL": "portable"} if script.stem.startswith("03") else {}
    environment = os.environ | {"QINCO_TRY_CACHE": cache} | slowly
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
