"""The scan of inverted lists on a GPU: its kernels interpreted, and compiled ahead of time."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled_kernels import SHARED_LIMIT, VERSIONS, compiled
from native_levels import needs_native
from small_indexes import built, copied, trained_on, vectors

from qinco.search.device_scan import MOST_CODES, MOST_SHORT, TABLE_CUTS, cuts, device_scan
from qinco.search.index import Index

SCRIPT = Path(__file__).parents[2] / "interpreted_scan.py"
COLUMNS = ["values", "ids", "lists", "codes", "norm_codes", "scanned"]
DEFECTS = {
    "table": "values differ", "launch": "out of resource", "list": "other numbers of vectors",
    "row": "other vectors", "wild row": "other vectors", "lost": "values differ",
}  # fmt: skip
SCANNED = {
    **dict.fromkeys(("tables", "levels", "bases", "values"), "*fp32"), "starts": "*i64", "codes": "*u8",
    **dict.fromkeys(("probes", "rows", "counts", "scanned"), "*i32"),
    **dict.fromkeys(("num_probes", "per_part", "nprobe", "num_segments", "num_starts", "short"), "i32"),
}  # fmt: skip
TABLES = {
    **dict.fromkeys(("queries", "rows", "tables"), "*fp32"), **dict.fromkeys(("count", "D"), "i32"),
    "entries": "i32:16", "factor": "fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def interpreted() -> dict:
    pytest.importorskip("triton", reason="needs triton")
    run = subprocess.run([sys.executable, SCRIPT, *DEFECTS], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
@needs_native
def test_results_are_the_processors_bit_for_bit_and_in_its_order(interpreted):
    cases = interpreted["cases"]
    assert cases["all lists, several segments"]["ties"] > 50 < cases["long lists"]["ties"]
    for name, case in cases.items():
        assert case["failure"] is None, name
        assert case["equal"] == case["types"] == COLUMNS, name


@pytest.mark.slow
@needs_native
def test_an_index_finds_the_same_by_them(interpreted):
    assert interpreted["index"] == {"equal": COLUMNS, "failure": None, "segments": 2}


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found_and_told_once_and_changes_no_result(interpreted, defect):
    seen = interpreted["defects"][defect]
    assert seen["right"] and len(seen["lines"]) == 1
    assert "by the processor instead" in seen["lines"][0] and DEFECTS[defect] in seen["lines"][0]


def check(made: dict, version: int) -> None:
    assert made["spilled"] == 0 and not made["warnings"]
    assert made["shared"] <= SHARED_LIMIT[version]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_tables_compile_without_spills(version):
    pytest.importorskip("triton", reason="needs triton")
    from qinco.search.scan_kernels import tables_kernel

    constants = {name: value for name, value in TABLE_CUTS.items() if name.isupper()}
    check(compiled(tables_kernel, TABLES, constants, version, num_warps=TABLE_CUTS["num_warps"]), version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("num_codes", "num_short"), [(8, 200), pytest.param(MOST_CODES, MOST_SHORT, marks=pytest.mark.slow)]
)
def test_the_scan_compiles_without_spills(version, num_codes, num_short):
    pytest.importorskip("triton", reason="needs triton")
    from qinco.search.scan_kernels import scan_kernel

    shape = cuts(num_short)
    constants = {"M": num_codes, "CAPACITY": shape["CAPACITY"], "BLOCK": shape["BLOCK"]}
    check(compiled(scan_kernel, SCANNED, constants, version, num_warps=shape["num_warps"]), version)


@pytest.mark.parametrize("num_short", [1, 255, 256, 257, 1024, 1025, MOST_SHORT])
def test_a_block_fits_beside_a_shortlist(num_short):
    shape = cuts(num_short)
    assert shape["CAPACITY"] >= num_short + shape["BLOCK"]


def test_other_devices_leave_the_scan_to_the_processor(elsewhere):
    if elsewhere.type != "cuda":
        assert device_scan(built().parts, str(elsewhere)) is None
    index = copied(built())
    on_device = Index(trained_on(elsewhere, "plain"), index.parts)
    wanted, found = (one.search(vectors(20, 3), 5) for one in (index, on_device))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4)
    assert (found[1] == wanted[1]).mean() > 0.95


@pytest.mark.gpu
def test_a_gpu_scans_as_the_processor_does():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    parts = built().parts
    scan = device_scan(parts, "cuda:0")
    given = parts.tables.metric.prepare(vectors(500, 3)), 100, parts.options, parts.segments, None, 1
    wanted, found = parts.tables.shortlist(*given), parts.tables.shortlist(*given, scan_lists=scan)
    assert scan is not None and scan.__self__.failure is None
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
