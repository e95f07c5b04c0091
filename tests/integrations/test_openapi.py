"""schemathesis: requests that it makes of the server's OpenAPI document, and what it checks of the answers."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from serving import serving

from qinco import Collection

pytest.importorskip("uvicorn")
pytest.importorskip("schemathesis")
httpx = pytest.importorskip("httpx")

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
COUNT = "/collections/{name}/points/count"


def with_short_filters(document: dict) -> dict:
    """The document with all conditions in one clause of filters of `count`, and with ids alone elsewhere.

    Filters hold filters: coverage would take hundreds of thousands of requests for the same parser.
    """
    schemas = document["components"]["schemas"]
    whole = schemas["Filter"]
    conditions = [one for one in whole["properties"]["must"]["anyOf"][0]["items"]["anyOf"]
                  if not one["$ref"].endswith("/Filter")]  # fmt: skip
    empty = {"type": "object", "additionalProperties": False, "maxProperties": 0}  # a filter without clauses
    ids = {"$ref": "#/components/schemas/HasIdCondition"}
    few, all_of_them = ({"anyOf": [{"type": "array", "items": {"anyOf": [*some, empty]}}, empty, {"type": "null"}]}
                        for some in ([ids], conditions))  # fmt: skip
    schemas["Filter"] = whole | {"properties": {"must": few}}
    schemas["MinShould"]["properties"]["conditions"] = few["anyOf"][0]
    clauses = {"must": all_of_them, "should": few, "must_not": few, "min_should": whole["properties"]["min_should"]}
    schemas["WholeFilter"] = whole | {"properties": clauses}
    body = document["paths"][COUNT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    body["properties"]["filter"] = {"anyOf": [{"$ref": "#/components/schemas/WholeFilter"}, {"type": "null"}]}
    return document


RUNS = {
    "coverage of searches": ["--phases", "coverage", "--include-tag", "search"],
    "coverage of points": ["--phases", "coverage", "--include-tag", "points"],
    "coverage of the rest": ["--phases", "coverage", "--exclude-tag", "search", "--exclude-tag", "points"],
    "fuzzing": ["--phases", "fuzzing", "--max-examples", "15"],
}


def test_all_checks_of_schemathesis_pass(tmp_path):
    """Runs beside each other, for each of them waits for its answers, one after the other."""
    failed = {}
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        ended = {}
        for name, options in RUNS.items():
            folder = tmp_path / name.replace(" ", "-")
            folder.mkdir()
            url, catalog = stack.enter_context(serving(folder / "data"))
            catalog.create("points", lambda folder: Collection.create(folder, dim=3), {})
            catalog.get("points").upsert(range(5), [[1, 2, 3]] * 5, [{"a": n} for n in range(5)])
            ended[name] = threads.submit(run, folder, url, options)
        for name, one in ended.items():
            if (done := one.result()).returncode:
                failed[name] = done.stdout[-6000:]
    assert not failed, "\n".join(f"{name}\n{text}" for name, text in failed.items())


def run(folder, url, options):
    (folder / "settings.toml").write_text(SETTINGS)
    document = httpx.get(f"{url}/openapi.json").json()
    (folder / "openapi.json").write_text(
        json.dumps(with_short_filters(document) if "coverage" in options else document)
    )
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", folder / "settings.toml", "run",
               folder / "openapi.json", "--url", url, "--checks", "all", "--continue-on-failure", "--seed", "1",
               "--no-color", *options]  # fmt: skip
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
