"""Uses an installed qinco as somebody does who encodes and searches. `.ci/run` runs it in environments of their own.

    python tests/installed/check.py          nothing of this may need torch or faiss, whether they are there or not
    python tests/installed/check.py bare     no extra is installed: what needs one says in one line how to get it

Checks run in the order below: later ones use what earlier ones wrote. All of them run, whichever fail.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

import qinco
from qinco.native import library

DATA = Path(__file__).parents[1] / "data"
CODECS = ["golden-codec-v1", "golden-ivf-codec-v1", "golden-product-codec-v1"]
INDEXES = ["golden-index-v1", "golden-graph-index-v1"]
HEAVY = ("torch", "faiss", "accelerate", "sklearn", "h5py", "pyarrow", "matplotlib", "httpx")
EXACT = {"nprobe": 40, "num_short": 250}  # the whole of a golden index


def vectors(count: int) -> np.ndarray:
    """Of the distribution that the golden codecs were trained on."""
    generator = np.random.default_rng(1)
    x_ND, mixing_DD = generator.standard_normal((300, 4)), generator.standard_normal((4, 4))
    x_ND = np.concatenate([x_ND, generator.standard_normal((max(0, count - 300), 4))])
    return (x_ND[:count] @ mixing_DD + 3).astype(np.float32)


def check_installation(folder: Path) -> None:
    assert library.is_available(), "no compiled engine is installed"
    installed = Path(qinco.__file__).parent
    assert (installed / "py.typed").exists()
    assert not [*installed.rglob("*.cpp"), *installed.rglob("*.h")], "sources are installed"


def check_vectors(folder: Path) -> None:
    x = vectors(500)
    for name in ("x.fvecs", "x.npy", "x.fbin"):
        qinco.write_vectors(folder / name, x)
        source = qinco.open_vectors(folder / name)
        assert np.array_equal(source[10:20], x[10:20]) and len(source) == len(x), name


def check_codecs(folder: Path) -> None:
    x = vectors(500)
    for name in CODECS:
        codec, golden = qinco.Codec.load(DATA / f"{name}.safetensors"), np.load(DATA / f"{name}.npz")
        parts = [golden[part] for part in ("codes", "lists") if part in golden]
        assert np.allclose(codec.decode(*parts), golden["decoded"], atol=1e-5), name
        codes = codec.encode(x)
        error = np.square(codec.decode(codes) - x).mean()
        assert error < np.square(x - x.mean(0)).mean() / 2, (name, error)
        assert qinco.Codec.from_bytes(codec.to_bytes()).fingerprint() == codec.fingerprint(), name
        written = qinco.encode_file(codec, folder / "x.fvecs", folder / name, shard_rows=200)
        assert written.complete, name
        qinco.decode_file(codec, folder / name, folder / f"{name}.npy")
        assert np.array_equal(np.load(folder / f"{name}.npy"), codec.decode(codes)), name
        assert qinco.evaluate(codec, x).mse > 0, name


def check_golden_indexes(folder: Path) -> None:
    for name in INDEXES:
        golden = np.load(DATA / f"{name}.npz")
        with qinco.Index.load(DATA / name) as index:
            distances, _ = index.search(golden["queries"], k=5, **EXACT)
            assert np.allclose(distances, golden["distances_0"], rtol=1e-4, atol=1e-4), name
            assert np.allclose(index.reconstruct(golden["ids"]), golden["decoded"], atol=1e-5), name


def check_searching(folder: Path) -> None:
    x = vectors(3000)
    queries, x = x[:100], x[100:]
    codec = qinco.Codec.load(DATA / "golden-codec-v1.safetensors")
    index = qinco.Index.build(codec, x[:2500], num_lists=16, pairwise=True)
    assert list(index.add(x[2500:2800])) == list(range(2500, 2800))
    index.upsert(x[2800:], ids=np.arange(100))
    index.remove(range(2700, 2800))
    _, ids = index.search(queries, k=10, filter=range(1000), nprobe=16)
    assert ids.shape == (100, 10) and ids.max() < 1000
    distances, near = qinco.exhaustive_search(queries, codec.decode(codec.encode(x[100:200])), k=3)
    assert distances.shape == near.shape == (100, 3)
    radius = float(index.search(queries, k=1, nprobe=16, num_short=2600)[0].min()) * 1.01 + 0.01
    _, _, found = index.range_search(queries, radius)
    assert len(found) and len(index.search_and_reconstruct(queries, k=2)[2]) == 100
    index.save(folder / "index")
    again = qinco.Index.load(folder / "index")
    expected = index.search(queries, k=10, nprobe=16)
    for one, other in zip(again.search(queries, k=10, nprobe=16), expected, strict=True):
        assert np.array_equal(one, other)
    truth = qinco.find_neighbors(again, queries, 10, nprobe=16, num_short=2600).ids
    assert 0 < again.evaluate(x[:2500], num_queries=50)["recall"][100] <= 1  # 64 codes: the first is drawn by lot
    assert qinco.sweep(again, queries, truth, nprobe=[1, 4], num_short=[10])
    small = qinco.Index.build(codec, x[:200], num_lists=1)  # a setting takes half a second to measure
    assert small.tune(queries, small.search(queries, k=10, num_short=200)[1], target_recall=0.1).nprobe == 1
    assert qinco.kmeans(x, 8).shape == (8, 4)
    fitted = qinco.fit_lookup_decoder(x, codec=codec)
    assert fitted.decoder.decode(codec.encode(x[:5]).codes).shape == (5, 4)


def check_forked_child(folder: Path) -> None:
    """After searching here: a child has none of the threads."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        expected = _work(folder)
        assert all(pool.map_async(_work, [folder] * 4).get(60)[i] == expected for i in range(4))


def _work(folder: Path) -> bytes:
    index, x = qinco.Index.load(folder / "index"), vectors(1000)
    return index.search(x)[1].tobytes() + index.codec.decode(index.codec.encode(x)).tobytes()


def check_command_line(folder: Path) -> None:
    codec = DATA / "golden-codec-v1.safetensors"
    qinco.write_vectors(folder / "q.fvecs", vectors(50))
    (folder / "line").mkdir()
    for words in (
        ["--help"], ["train", "--help"], ["info", codec], ["doctor"],
        ["encode", f"model={codec}", f"db={folder}/x.fvecs", "output=codes"],
        ["decode", f"model={codec}", "codes=codes", "output=decoded.fvecs"],
        ["ivf_centroids", f"trainset={folder}/x.fvecs", "ivf_K=8", "output=c.npy"],
        ["build_index", f"model={codec}", "encoded_trainset=codes", "encoded_db=codes", f"trainset={folder}/x.fvecs",
         "ivf_K=8", "output=index"],
        ["search", "index=index", f"queries={folder}/q.fvecs", "output=found.ivecs"],
        ["search", "index=index", f"queries={folder}/q.fvecs", "queries_gt=found.ivecs", "output=sweep.json"],
        ["eval", f"model={codec}", f"db={folder}/x.fvecs"],
    ):  # fmt: skip
        done = _run(folder / "line", words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)


def _run(folder: Path, words: list) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "qinco", *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def check_nothing_else_is_loaded(folder: Path) -> None:
    loaded = [name for name in HEAVY if name in sys.modules]
    assert not loaded, f"imported: {', '.join(loaded)}"
    maps = Path("/proc/self/maps")
    assert not maps.exists() or "gomp" not in maps.read_text(), "OpenMP is loaded"


def check_what_needs_extras(folder: Path) -> None:
    """Of a bare installation: the line says what to type, and comes at once."""
    x, codec = vectors(500), qinco.Codec.load(DATA / "golden-codec-v1.safetensors")
    index = qinco.Index.load(folder / "index")
    codes = codec.encode(x)
    for name, beginning in {"x.h5": b"\x89HDF\r\n\x1a\n", "x.parquet": b"PAR1", "x.faissindex": b"IxPT"}.items():
        (folder / name).write_bytes(beginning)
    unsaid = []
    for extra, call in (
        ("train", lambda: qinco.Codec.fit(x, epochs=1)),
        ("train", lambda: codec.with_options(engine="torch").encode(x)),
        ("train", lambda: codec.with_options(num_candidates=4).save(folder / "codec.pt")),
        ("gpu", lambda: qinco.Codec.load(DATA / "golden-codec-v1.safetensors", device="cuda")),
        ("faiss", lambda: qinco.Index.load(folder / "x.faissindex")),
        ("faiss", lambda: qinco.build_index(codes, folder / "y.faissindex", codec=codec, train_codes=codes,
                                            train_vectors=x, num_lists=4)),
        ("hdf5", lambda: qinco.open_vectors(folder / "x.h5")),
        ("parquet", lambda: qinco.open_vectors(folder / "x.parquet")),
        ("parquet", lambda: qinco.find_neighbors(index, x, 1, output=folder / "found.parquet")),
        ("plot", lambda: qinco.sweep(index, x, np.zeros((500, 1), int), plot=folder / "plot.png")),
        ("download", lambda: qinco.download("bigann1M")),
    ):  # fmt: skip
        try:
            call()
        except qinco.QincoError as error:
            if f"pip install 'qinco[{extra}]'" not in str(error) or "\n" in str(error):
                unsaid.append((extra, str(error)))
        else:
            unsaid.append((extra, "nothing is missing"))
    assert not unsaid, unsaid
    for extra, words in {
        "train": ["train", "trainset=x.fvecs", "output=codec.safetensors"],
        "gpu": ["encode", f"model={DATA}/golden-codec-v1.safetensors", "db=x.fvecs", "output=c.npy", "device=cuda"],
    }.items():
        done = _run(folder, words)
        assert done.returncode == 2 and f"'qinco[{extra}]'" in done.stderr.splitlines()[-1], (words, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr


def main(arguments: list[str]) -> int:
    checks = [check for name, check in globals().items() if name.startswith("check_")]
    if arguments != ["bare"]:
        checks.remove(check_what_needs_extras)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for check in checks:
            begun = time.monotonic()
            try:
                check(Path(folder))
            except Exception:
                failed.append(check)
                print(f"{check.__name__}: failed")
                traceback.print_exc(limit=-3, file=sys.stdout)
            else:
                print(f"{check.__name__}: ok, {time.monotonic() - begun:.1f} s")
    print(f"{len(checks) - len(failed)} passed, {len(failed)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
