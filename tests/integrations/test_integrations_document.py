"""The examples of docs/integrations.md run, each where its library is installed."""

import gc
import re
from pathlib import Path

import numpy as np
import pytest
from compressed import codec

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
SECTIONS = {
    section.partition("\n")[0].strip("# "): re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    for section in re.split(r"^(?=##+ )", PAGE, flags=re.MULTILINE)
}
LIBRARIES = {
    "LangChain": "langchain_core",
    "Haystack": "haystack",
    "LlamaIndex": "llama_index.core",
    "txtai": "txtai",
    "Late interaction: ColBERT, PyLate": None,
}
# Models that would have to be downloaded.
REPLACED = {'"path": model': '"method": "external", "transform": transform'}


class Model:
    """In place of a late-interaction model."""

    def encode(self, texts: list[str], **options) -> list[np.ndarray]:
        return [np.random.default_rng(len(text)).standard_normal((5, 6)).astype(np.float32) for text in texts]


def names_of(section: str) -> dict:
    """What the examples of a section take for granted."""
    if section == "txtai":
        documents = [(n, {"text": f"text {n}", "year": 2000 + n}, None) for n in range(20)]
        return {"documents": documents, "transform": lambda texts: np.stack(Model().encode(texts))[:, 0]}
    if section.startswith("Late interaction"):
        codec(6).save("token-codec.safetensors")
        codes = [codec(6).encode(tokens) for tokens in Model().encode(["a", "bb"])]
        return {"model": Model(), "documents": ["a", "bb"], "codes_of_a": codes[0], "codes_of_b": codes[1]}
    return {}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # txtai leaves temporary folders of archives
@pytest.mark.parametrize(
    "section", [section for section, blocks in SECTIONS.items() if blocks and section in LIBRARIES]
)
def test_examples_run(section, tmp_path, monkeypatch):
    if library := LIBRARIES[section]:
        pytest.importorskip(library, reason="the extra integrations is not installed")
    monkeypatch.chdir(tmp_path)
    names = names_of(section)
    for block in SECTIONS[section]:
        for there, here in REPLACED.items():
            block = block.replace(there, here)
        exec(compile(block, section, "exec"), names)
    for value in names.values():
        if hasattr(value, "close") and not isinstance(value, type):
            value.close()
    value = None
    names.clear()
    gc.collect()
