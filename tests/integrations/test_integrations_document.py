"""The examples of docs/integrations.md run, each where its library is installed."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
SECTIONS = {
    section.partition("\n")[0].strip("# "): re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    for section in re.split(r"^(?=##+ )", PAGE, flags=re.MULTILINE)
}
LIBRARIES = {"LangChain": "langchain_core", "Haystack": "haystack", "LlamaIndex": "llama_index.core"}


@pytest.mark.parametrize("section", [section for section, blocks in SECTIONS.items() if blocks])
def test_examples_run(section, tmp_path, monkeypatch):
    if section in LIBRARIES:
        pytest.importorskip(LIBRARIES[section], reason="the extra integrations is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in SECTIONS[section]:
        exec(compile(block, section, "exec"), names)
