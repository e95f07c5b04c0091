"""The examples in docstrings are Python, and those of public names run."""

import ast
import doctest
import inspect
import os
from pathlib import Path

import numpy as np
import pytest

import qinco
from qinco.integrations.sklearn import QincoTransformer
from qinco.vectors.formats import write_vectors

SOURCES = sorted(Path(qinco.__file__).parent.rglob("*.py"))
SMALLER = "epochs=1, codebook_size=4, num_blocks=1, hidden_dim=8"
NOT_RUN = {"benchmark", "download", "kmeans", "sweep"}  # which take seconds, a network, or thousands of vectors
NAMES = {name: getattr(qinco, name) for name in qinco.__all__} | {"QincoTransformer": QincoTransformer}


def examples(docstring: str | None) -> list[str]:
    return [example.source for example in doctest.DocTestParser().get_examples(inspect.cleandoc(docstring or ""))]


def test_examples_are_python():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for example in examples(ast.get_docstring(node)):
                    compile(example, str(path), "single")


def public_examples() -> dict[str, list[str]]:
    found = {}
    for name, value in NAMES.items():
        members = dir(value) if inspect.isclass(value) and value is not QincoTransformer else []
        parts = {name: value} | {f"{name}.{part}": getattr(value, part) for part in members if part[0] != "_"}
        found |= {part: examples(inspect.getdoc(of)) for part, of in parts.items()}
    return {name: lines for name, lines in found.items() if lines and name not in NOT_RUN}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> tuple[Path, dict]:
    """A folder with the files that the examples name, and the variables that they take for granted."""
    folder, generator, before = tmp_path_factory.mktemp("examples"), np.random.default_rng(0), Path.cwd()
    os.chdir(folder)
    try:
        sets = {name: generator.standard_normal((count, 8)).astype(np.float32)
                for name, count in (("train", 300), ("base", 1100), ("query", 5))}  # fmt: skip
        for name, x in sets.items():
            write_vectors(f"{name}.fvecs", x)
        write_vectors("base.bvecs", np.zeros((9, 8), np.uint8))
        write_vectors("groundtruth.ivecs", generator.permutation(1100)[:50].reshape(5, 10).astype(np.int32))
        codec = qinco.Codec.fit("train.fvecs", epochs=0, num_steps=2, codebook_size=4, num_blocks=1, hidden_dim=8)
        codec.save("codec.safetensors")
        codes = codec.encode(sets["base"])
        codes.save("codes.npy")
        qinco.encode_file(codec, "base.fvecs", "codes")
        qinco.encode_file(codec, "train.fvecs", "train_codes")
        qinco.Index.build(codec, sets["base"]).save("index")
        docs = qinco.Collection.create("shown.qinco")
        docs.upsert(["a", "b"], sets["base"][:2], [{"year": 2009}, {"year": 2012}])
        places = qinco.NamedCollection.create("shown-places.qinco", {"image": {"dim": 8}, "text": {"dim": 4}})
    finally:
        os.chdir(before)
    variables = {"qinco": qinco, "np": np, "numpy": np, "codec": codec, "codes": codes, "x": sets["train"]}
    variables |= {"docs": docs, "places": places, "X": sets["train"], "vectors": sets["base"], "queries": sets["query"]}
    return folder, variables


@pytest.mark.parametrize(("name", "lines"), public_examples().items(), ids=public_examples())
def test_examples_of_public_names_run(name, lines, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder[0])
    variables = NAMES | folder[1]
    for line in lines:
        line = line.replace("minutes=10", SMALLER).replace("epochs=5", "epochs=1")
        exec(compile(line, name, "single"), variables)


def test_examples_that_say_so_are_right():
    runner = doctest.DocTestRunner()
    for value in (qinco.ModelConfig, qinco.Codes, inspect.getmodule(qinco.QincoError)):
        for found in doctest.DocTestFinder(recurse=not inspect.isclass(value)).find(value):
            assert runner.run(found).failed == 0, found.name
