"""The code blocks of the documents, and how tests run them: as printed, but with tiny models, beside servers that stand
in for others, and in one folder of small files."""

import gzip
import json
import re
import shlex
import sys
import tomllib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from published_server import http_server
from server_process import ServerProcess

import qinco
from qinco.cli import main
from qinco.planning import Rates
from qinco.vectors.formats import write_vectors

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Pages whose blocks need what `make test-integrations` installs, and run there.
_FRAMEWORKS = ("haystack", "hub", "langchain", "late-interaction", "llama-index", "sentence-transformers", "txtai")
IN_INTEGRATIONS = {"scale.md", *(f"guides/{name}.md" for name in _FRAMEWORKS)}
IN_A_TEST_OF_ITS_OWN = {"formats.md"}  # the decoder that it prints
# First words of commands that no test runs, and why.
NOT_RUN = {"docker": "needs a daemon of Docker, and builds an image of the whole package"}

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SMALLER = {"epochs": "1", "K": "4", "L": "1", "de": "8", "dh": "8"}  # of models that are trained
SMALLER_CALL = "epochs=1, codebook_size=4, num_blocks=1, embed_dim=8, hidden_dim=8"
TINY: dict[str, Any] = {
    "codebook_size": 4, "num_blocks": 1, "embed_dim": 8, "hidden_dim": 8, "epochs": 0, "seed": 0,
}  # fmt: skip
FEWER = {"ivf_K": "5", "num_shards": "2", "host": "127.0.0.1"}  # where a command gives them
SMALL_COMPARISON = {"bytes": "[2]", "presets": "[qinco2-XS]", "rivals": "[PQ]", "parts": "[]", "minutes": "0.02"}


def name_of(path: Path) -> str:
    """A document as it is called below docs/, or at the root."""
    docs = ROOT / "docs"
    return path.relative_to(docs if path.is_relative_to(docs) else ROOT).as_posix()


def blocks(path: Path) -> list[tuple[str, str]]:
    """Pairs of the language, "sh" or "python", and the code."""
    return [found for found in FENCED.findall(path.read_text()) if found[0] in ("sh", "python")]


def write_files(folder: Path) -> None:
    """What the examples name: vectors, tables, a codec, texts, keys, rates."""
    generator = np.random.default_rng(0)
    x_ND = generator.standard_normal((400, 8)).astype(np.float32)
    for name, rows in (("train", x_ND[:200]), ("base", x_ND[:50]), ("query", x_ND[200:205]), ("test", x_ND[210:250])):
        write_vectors(folder / f"{name}.fvecs", rows)
    for name, rows in (("train", x_ND), ("base", x_ND), ("queries", x_ND[200:205])):
        np.save(folder / f"{name}.npy", rows)
    ids, years = [f"text-{row}" for row in range(400)], [1980 + row % 50 for row in range(400)]
    column = pa.FixedSizeListArray.from_arrays(pa.array(x_ND.ravel()), 8)
    pq.write_table(pa.table({"id": ids, "year": years, "embedding": column}), folder / "text.parquet")
    (folder / "emb").mkdir()
    for part in range(2):
        table = pa.table({"doc_id": ids, "embedding": column})[part * 200 : part * 200 + 200]
        pq.write_table(table, folder / "emb" / f"part-{part}.parquet")
    write_vectors(folder / "gt.ivecs", generator.integers(0, 50, (5, 10)).astype(np.int32))
    (folder / "keys").write_text("a-long-secret\n")
    (folder / "sentences.txt").write_text("".join(f"Sentence {row} has {row % 7} words.\n" for row in range(60)))
    (folder / "rates.json").write_text(json.dumps(dict.fromkeys(Rates.__dataclass_fields__, 1.0)))


def tiny_codec(folder: Path) -> qinco.Codec:
    return qinco.Codec.fit(folder / "train.fvecs", num_steps=8, **TINY)


def write_codes(folder: Path) -> None:
    """What examples take for made before: codes, an index, and a collection."""
    codec, base = tiny_codec(folder), qinco.open_vectors(folder / "base.fvecs")
    codec.save(folder / "codec.safetensors")
    qinco.encode_file(codec, folder / "train.fvecs", folder / "train_codes")
    qinco.Index.build(codec, base).save(folder / "index")
    with qinco.Collection.create(folder / "docs.qinco", codec=codec) as docs:
        docs.upsert(range(50), base, [{"year": 1980 + row} for row in range(50)])


def compress(folder: Path) -> None:
    """Compress a collection of a few vectors, as it is once there are many."""
    with qinco.Collection.open(folder) as docs:
        records = docs.get(with_vectors=True)
    x_ND = np.array([record.vector for record in records], np.float32)
    codec = qinco.Codec.fit(x_ND, num_steps=2, **TINY)
    with qinco.Collection.create(folder, codec=codec, overwrite=True) as docs:
        docs.upsert([record.id for record in records], x_ND)
        docs.optimize()


def published(folder: Path, server) -> str:
    """Fill a server with what the examples download, in small; its address."""
    files = {
        "base": "/QINCo/datasets/bigann/bigann1M.bvecs",
        "train": "/QINCo/datasets/bigann/bigann_learn_10M10k.bvecs",
        "query": "/local/texmex/corpus/bigann_query.bvecs.gz",
    }
    for name, address in files.items():
        rows = np.clip(qinco.open_vectors(folder / f"{name}.fvecs")[:] * 40 + 128, 0, 255).astype(np.uint8)
        write_vectors(folder / "published.bvecs", rows)
        content = (folder / "published.bvecs").read_bytes()
        server.files[address] = gzip.compress(content) if address.endswith(".gz") else content
    server.files["/QINCo/datasets/bigann/gnd/idx_1M.ivecs"] = (folder / "gt.ivecs").read_bytes()
    tiny_codec(folder).save(folder / "published.safetensors")
    qinco.convert_codec(folder / "published.safetensors", folder / "published.pt")
    server.files["/QINCo/qinco2-models/qinco2_L-bigann1M-8x8.pt"] = (folder / "published.pt").read_bytes()
    return server.address


def replaced(words: list[str], values: dict[str, str], *, given_only: bool = False) -> list[str]:
    """Words of a command with other values of keys, which are added where they are missing, or not."""
    names = [word.partition("=")[0] for word in words]
    changed = [f"{name}={values[name]}" if name in values else word for name, word in zip(names, words, strict=True)]
    return changed if given_only else changed + [f"{name}={values[name]}" for name in values if name not in names]


class Page:
    """A page whose blocks are run, in the folder that is current: a server that it starts answers its Python, until the
    next command."""

    def __init__(self, path: Path, folder: Path, names: dict | None = None, texts: dict[str, str] | None = None):
        self.path, self.folder, self.names, self.texts = path, folder, names or {}, texts or {}
        self.server: ServerProcess | None = None

    def run(self) -> dict:
        """Run all blocks; returns the variables of its Python."""
        with ExitStack() as stack:
            stack.callback(self._end_server)
            for language, block in blocks(self.path):
                if language == "python":
                    self._python(block)
                    continue
                *lines, last = block.replace("\\\n", " ").splitlines()
                for line in lines:
                    self._command(line, stack)
                self._command(last, stack, is_last=True)
        return self.names

    def _end_server(self) -> None:
        if self.server is not None:
            server, self.server = self.server, None
            assert server.end() == 0, server.log

    def _python(self, block: str) -> None:
        for there, here in self.texts.items():
            block = block.replace(there, here)
        if self.server is not None:
            block = block.replace("127.0.0.1:6333", f"127.0.0.1:{self.server.port}")
        exec(compile(re.sub(r"minutes=\d+", SMALLER_CALL, block), name_of(self.path), "exec"), self.names)

    def _command(self, line: str, stack: ExitStack, is_last: bool = False) -> None:
        """Run a line of a shell block, or check what it asks of `make` and `pip`."""
        words = shlex.split(line, comments=True)
        if not words or words[0] in NOT_RUN:
            return
        self._end_server()
        if words[0] == "make":
            assert set(words[1:]) <= TARGETS, line
        elif words[:2] == ["pip", "install"]:
            named = [extra for extras in re.findall(r"\[(.*?)\]", line) for extra in extras.split(",")]
            assert set(named) <= set(EXTRAS), line
        else:
            assert "qinco" in words, f"what does this line do? {line}"  # behind torchrun, too, which is left out
            self._task(words[words.index("qinco") + 1 :], line, stack, is_last)

    def _task(self, words: list[str], line: str, stack: ExitStack, is_last: bool) -> None:
        words = replaced([self.texts.get(word, word) for word in words], FEWER, given_only=True)
        if words[0] == "serve" and not is_last:  # the next one is started
            words.append("--cfg")
        elif words[0] == "serve":
            command = [sys.executable, "-m", "qinco", *words, "port=0"]
            self.server = ServerProcess(command, cwd=self.folder)
            return
        if words[0] == "train":
            words = replaced([word for word in words if not word.startswith("minutes=")], SMALLER)
        elif words[0] == "retrain":
            compress(self.folder / words[1])
            words = replaced(words, {"minutes": "0.01"})
        elif words[0] == "compare":
            words = replaced(words, SMALL_COMPARISON)
        elif words[0] == "plan":
            words.append("rates=rates.json")
        elif words[0] == "download":
            words.append(f"mirror={published(self.folder, stack.enter_context(http_server()))}")
        assert main(words) == 0, line
