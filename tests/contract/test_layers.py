"""Rooms import only rooms below them, and what is heavy or optional is imported only where it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qinco

ROOT = Path(qinco.__file__).parent
# A room may import rooms of lower levels, and itself; rooms of one level do not know each other.
LEVELS = [
    ["errors", "forking", "version"],
    ["config", "atomic", "interrupts", "machine", "progress"],
    ["executors", "packing"],
    ["vectors", "native"],
    ["maths", "datasets", "hub"],
    ["model"],
    ["engines"],
    ["decoders"],
    ["compat"],
    ["training", "store"],
    ["codec"],
    ["search"],
    ["collection", "distributed"],
    ["comparison"],
    ["description", "installation", "integrations", "page", "planning"],
    ["server"],
    ["cli"],
    ["__main__"],
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
HOMES = {
    "faiss": {"compat/faiss_files.py", "installation.py", "comparison/coders.py", "comparison/installed.py"},
    "accelerate": {"training/processes.py"},
    "triton": {
        *(f"engines/triton/{name}.py" for name in ("decode", "launches", "layers", "network", "ranking", "selection")),
        "maths/closest_kernel.py",
        "search/scan_kernels.py",
    },
    "ray": {"distributed/cluster.py", "distributed/pool.py"},
    "matplotlib": {"comparison/page.py", "comparison/svg.py", "search/measure/plot.py"},
}
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def imports(path: str, top_level_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it or when it is itself imported."""
    tree = ast.parse((ROOT / path).read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name lives"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


@pytest.mark.parametrize("path", [path for path in FILES if path != "__init__.py"])
def test_a_room_imports_only_rooms_below_it(path):
    home = room(path)
    assert home in LEVEL, f"{home} is a new room: say where it stands"
    for name in imports(path):
        if not name.startswith("qinco."):
            continue
        other = name.split(".")[1]
        if other.startswith("__"):
            other = "version"
        assert other == home or LEVEL[other] < LEVEL[home], f"{path} imports {name}, which does not stand below it"


def test_the_walk_sees_imports():
    assert {"qinco.training.options", "qinco.errors"} <= imports("codec/plan.py")
    assert "accelerate" in imports("training/processes.py") - imports("training/processes.py", top_level_only=True)


@pytest.mark.parametrize("library", HOMES)
def test_libraries_have_their_places(library):
    users = {path for path in FILES if any(name.split(".")[0] == library for name in imports(path))}
    assert users and users <= HOMES[library]


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in ("model", "maths", "engines", "training")])
def test_what_computes_does_not_print(path):
    calls = [node.func for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id in ("print", "open", "input")]


@pytest.mark.parametrize(
    "statement",
    ["import qinco", "import qinco; qinco.open_vectors, qinco.ModelConfig, qinco.PRESETS", "import qinco.cli"],
)
def test_importing_the_package_loads_nothing_heavy(statement):
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "qinco" in loaded
    assert not {"torch", "faiss", "accelerate", "safetensors", "sklearn", "scipy", "matplotlib"} & set(loaded)


@pytest.mark.parametrize("module", ["engines.native_engine", "engines.numpy_engine", "store.codec", "store.codes",
                                    "compat.checkpoints", "cli.app", "cli.tasks"])  # fmt: skip
def test_the_core_loads_neither_torch_nor_faiss(module):
    code = f"import sys, qinco.{module}; print(*sorted({{'torch', 'faiss'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"


def test_without_torch_codecs_of_any_kind_are_read_and_decoded(tmp_path):
    """By the compiled kernels, or by numpy."""
    golden = Path(__file__).parents[1] / "data"
    code = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from pathlib import Path
from qinco.engines.engine import choose_engine
from qinco.store.codec import load_models, save_models
weights, _, options, provenance = load_models({str(golden / "golden-codec-v1.safetensors")!r})
save_models(Path({str(tmp_path)!r}) / "c.safetensors", weights, None, options, provenance)
data = np.load({str(golden / "golden-codec-v1.npz")!r})
packed = choose_engine("auto", weights[0].config, "cpu").pack(weights[0], "float32", "cpu")
print(np.allclose(packed.decode(data["codes"]), data["decoded"], rtol=1e-4, atol=1e-4))
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "True\n"
    assert (tmp_path / "c.safetensors").read_bytes() == (golden / "golden-codec-v1.safetensors").read_bytes()


def test_every_public_name_is_there():
    for name in qinco.__all__:
        assert getattr(qinco, name) is not None and name in dir(qinco)
    with pytest.raises(AttributeError, match="has no attribute 'Codek'"):
        qinco.Codek  # noqa: B018
