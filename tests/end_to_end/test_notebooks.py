"""The notebooks run from their first cell to the last, on their own data and on a file, and Jupyter can open them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
pytestmark = pytest.mark.slow


def output_of(path: Path, folder: Path, **environment: str) -> str:
    """What a notebook prints; its figures are drawn and not shown."""
    found = {name: value for name, value in os.environ.items() if name != "VECTORS"}
    found |= {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)} | environment
    done = subprocess.run([sys.executable, str(path)], cwd=folder, env=found, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["collection_filters", "compress_embeddings", "rate_distortion"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_on_their_own_data(path, tmp_path):
    printed = output_of(path, tmp_path)
    assert len(printed.splitlines()) >= 8
    assert list(tmp_path.rglob("*.qinco")) or path.stem != "collection_filters"


def test_a_notebook_takes_a_file(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((1200, 8)).astype(np.float32)
    np.save(tmp_path / "own.npy", vectors)
    printed = output_of(FOLDER / "compress_embeddings.py", tmp_path, VECTORS="own.npy")
    assert printed.startswith("700 embeddings of 8 dimensions, 32 bytes each\n")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_open_in_jupyter(path):
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(path)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" and notebook.cells[0].source.startswith("# ")
    assert kinds.count("code") >= 5 and kinds.count("markdown") >= 5
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert jupytext.reads(jupytext.writes(notebook, fmt="ipynb"), fmt="ipynb").cells[-1].source
