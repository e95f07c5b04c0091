"""Uploads and downloads with the hub's own client, from a hub on loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer
from small_indexes import built, copied, trained, vectors

import qinco

hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")
CLASSES = {"codec": "Codec", "index": "Index", "collection": "Collection"}
HEAD = """
import sys
import numpy as np
import qinco
queries = np.load(sys.argv[1])
def answer(thing):
    if hasattr(thing, "encode"):
        return thing.encode(queries).codes.tolist()
    if hasattr(thing, "num_lists"):
        return thing.search(queries, 5)[1].tolist()
    return [[hit.id for hit in hits] for hits in thing.search(queries, 5)]
"""


@pytest.fixture
def server():
    with HubServer() as server:
        yield server


@pytest.fixture
def run(server, tmp_path):
    """Run statements in a process that knows that hub, and a cache in this test's folder; what they print."""
    import numpy as np

    queries = tmp_path / "queries.npy"
    np.save(queries, vectors(5, 3))

    def run(statements: str, **more) -> str:
        settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
                    "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": "hf_secret",
                    "HF_HUB_OFFLINE": "0", **more}  # fmt: skip
        done = subprocess.run([sys.executable, "-c", HEAD + statements, str(queries)], capture_output=True, text=True,
                              cwd=tmp_path, env=os.environ | settings, timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(params=CLASSES)
def saved(request, tmp_path) -> tuple[str, str]:
    """The kind of something on disk, and the expression that opens it."""
    if request.param == "codec":
        trained("plain").save(tmp_path / "codec.safetensors")
        return "codec", "qinco.Codec.load('codec.safetensors')"
    if request.param == "index":
        copied(built()).save(tmp_path / "index")
        return "index", "qinco.Index.load('index')"
    with qinco.Collection.create(tmp_path / "docs.qinco", codec=trained("plain"), metric="l2") as docs:
        docs.upsert(range(200), vectors(200))
        docs.optimize()
        docs.upsert(["fresh"], vectors(1, 9))
    return "collection", "qinco.Collection.open('docs.qinco', read_only=True)"


def test_what_is_pushed_is_downloaded_and_then_read_offline(saved, run, server):
    kind, opened = saved
    push = f"""
thing = {opened}
print(thing.push_to_hub("me/thing", private=True, metadata={{"license": "mit"}}, commit_message="First"))
print(answer(thing))
"""
    address, expected = run(push).splitlines()
    assert address.startswith(f"{server.url}/me/thing/commit/")
    asked = server.created[0]  # by older and newer clients
    assert (asked.get("private") or asked.get("visibility")) in (True, "private") and server.messages == ["First"]
    files = server.repositories["me/thing"]
    content = {"codec": "model.safetensors", "index": "index/", "collection": "collection/"}[kind]
    assert {"README.md", "config.json"} <= set(files) and [name for name in files if name.startswith(content)]
    assert not any(b"hf_secret" in body for body in files.values())
    assert hub.ModelCard(files["README.md"].decode()).data.license == "mit"

    load = f"print(answer(qinco.{CLASSES[kind]}.from_pretrained('me/thing')))"
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        assert run(load, **more).strip() == expected
    assert any("qinco/" in agent for agent in server.agents)
    commit = server.commit_of("me/thing")
    files["config.json"] = b"{}"
    assert run(load.replace("thing'", f"thing', revision='{commit}'"), HF_HUB_OFFLINE="1").strip() == expected


def test_a_second_push_leaves_nothing_of_the_first(saved, run, server):
    kind, opened = saved
    push = f"print({opened}.push_to_hub('me/thing', readme=False))"
    run(push)
    server.repositories["me/thing"] |= {f"{kind}/old.npy": b"old", "README.md": b"mine"}
    run(push)
    files = server.repositories["me/thing"]
    assert files["README.md"] == b"mine"
    assert (f"{kind}/old.npy" in files) == (kind == "codec")  # whose repository has no such folder


def test_a_downloaded_collection_is_copied_to_be_written(tmp_path, run):
    with qinco.Collection.create(tmp_path / "docs.qinco", codec=trained("plain"), metric="l2") as docs:
        docs.upsert(range(200), vectors(200))
        docs.optimize()
    run("qinco.Collection.open('docs.qinco', read_only=True).push_to_hub('me/docs')")
    out = run("""
docs = qinco.Collection.from_pretrained("me/docs", "copy.qinco")
docs.delete([0])
docs.upsert(["new"], queries[:1])
docs.optimize()
print(len(docs), docs.verify(), "new" in [hit.id for hit in docs.search(queries[0], 10)])
docs.close()
print(len(qinco.Collection.from_pretrained("me/docs")))
""")
    assert out.split("\n")[:2] == ["200 [] True", "200"]
    assert not [path for path in Path(tmp_path, "copy.qinco").rglob("*") if path.is_symlink()]


@pytest.mark.parametrize(
    ("call", "more", "told"),
    [
        ("qinco.Codec.from_pretrained('me/missing')", {}, "cannot download me/missing"),
        ("qinco.Codec.from_pretrained('me/missing')", {"HF_HUB_OFFLINE": "1"}, "cannot download me/missing"),
        ("qinco.Codec.from_pretrained('bad name/--')", {}, "cannot download bad name/--"),
        ("qinco.Codec.from_pretrained('me/other')", {}, "me/other holds no model.safetensors"),
        ("qinco.Codec.load('codec.safetensors').push_to_hub('me/x')", {"HF_ENDPOINT": "http://127.0.0.1:9"},
         "cannot upload to me/x"),
    ],
)  # fmt: skip
def test_what_fails_says_what_to_do(call, more, told, run, server, tmp_path):
    trained("plain").save(tmp_path / "codec.safetensors")
    server.repositories["me/other"] = {"config.json": b'{"architectures": []}'}
    out = run(f"try:\n    {call}\nexcept qinco.DataError as error:\n    print(error)\n", **more)
    assert out.startswith(told) and "see that" in out and out.count("\n") == 1
