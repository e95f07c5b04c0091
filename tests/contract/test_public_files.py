"""The files of a public project agree with each other, and nothing that builds a release can be changed under it."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from qinco.version import __version__

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_hash(path):
    text = path.read_text()
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert used or "run:" in text
    for name, rest in used:
        if not name.startswith("./.github/workflows/"):
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name) and re.fullmatch(r" # v\d+(\.\d+)*", rest), name
    # Nothing may write unless a job says so
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    assert "persist-credentials: true" not in text and "pull_request_target" not in text


def test_one_hash_an_action():
    pinned = {use for path in WORKFLOWS for use in re.findall(r"uses: ([\w-]+/[\w-]+@\w+)", path.read_text())}
    assert len(pinned) == len({use.split("@")[0] for use in pinned})


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    recipe = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text())
    assert citation["version"] == recipe["context"]["version"] == __version__
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_recipe_needs_what_the_package_needs():
    recipe = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text())
    needed = {f"python {PROJECT['requires-python']}", *(re.sub(r"(?=[<>=])", " ", name, count=1) for name in
              PROJECT["dependencies"])}  # fmt: skip
    assert set(recipe["requirements"]["run"]) == needed
    (command,) = PROJECT["scripts"].items()
    assert recipe["build"]["python"]["entry_points"] == [" = ".join(command)]


def test_every_supported_python_is_tested():
    declared = {name.rsplit(" ", 1)[1] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)}
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert set(jobs["test"]["strategy"]["matrix"]["python"]) == declared
    assert set(jobs["elsewhere"]["strategy"]["matrix"]["python"]) == declared
