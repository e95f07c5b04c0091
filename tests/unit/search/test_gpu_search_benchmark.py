"""benchmarks/gpu_search.py runs from end to end; never how long anything takes."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu_search.py"


def test_a_rehearsal_reports_every_measurement():
    done = subprocess.run([sys.executable, SCRIPT, "rehearse"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["what"] for line in lines] == ["machine", "assign", "build", "search", "search"]
    assert lines[1]["same_centroid"] > 0.99 and lines[1]["further_away"] == 0
    assert [line["by"] for line in lines[3:]] == ["tables", "network"]
    assert all(line["queries_a_second"] > 0 for line in lines[3:])
