"""schemathesis: requests that it makes of the server's OpenAPI document, and what it checks of the answers."""

import subprocess
import sys
from pathlib import Path

import pytest
from serving import serving

from qinco import Collection

pytest.importorskip("uvicorn")
pytest.importorskip("schemathesis")

# What its schema admits and the server refuses, such as vectors of another dimension, is 400, and never 422.
SETTINGS = """
[parameters]
"path.name" = "points"
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409"]
[[operations]]
include-name = "DELETE /collections/{name}"
parameters = { "path.name" = "other" }
"""


def test_all_checks_of_schemathesis_pass(tmp_path):
    (tmp_path / "settings.toml").write_text(SETTINGS)
    with serving(tmp_path / "data") as (url, catalog):
        catalog.create("points", lambda folder: Collection.create(folder, dim=3), {})
        catalog.get("points").upsert(range(5), [[1, 2, 3]] * 5, [{"a": n} for n in range(5)])
        command = [Path(sys.executable).with_name("schemathesis"), "--config-file", tmp_path / "settings.toml", "run",
                   f"{url}/openapi.json", "--checks", "all", "--phases", "fuzzing", "--max-examples", "15",
                   "--seed", "1", "--no-color"]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
