"""benchmarks/README.md says of every report how it is made again, and names every script."""

import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"
PAGE = (FOLDER / "README.md").read_text()


def test_every_report_has_a_command_and_every_script_is_named():
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    for report in sorted((FOLDER / "results").iterdir()):
        (row,) = (row for row in rows if f"](results/{report.name})" in row)
        assert re.search(r"`(python|qinco|make) ", row), report.name
    scripts = {path.name for path in FOLDER.glob("*.py")}
    assert scripts <= set(re.findall(r"\w+\.py", PAGE))
    assert set(re.findall(r"`python benchmarks/(\w+\.py)", PAGE)) <= scripts


def test_links_and_paths_lead_somewhere():
    for link in re.findall(r"\]\(((?!https:)[^)#]+)", PAGE):
        assert (FOLDER / link).exists(), link
    for path in re.findall(r"\badapters/(\w+)", PAGE):
        assert (FOLDER / "adapters" / path).exists(), path


def test_settings_of_commands_are_those_of_their_scripts():
    for command in re.findall(r"`python (benchmarks/\w+\.py[^`]*)`", PAGE):
        path, *words = command.split()
        text = (FOLDER.parent / path).read_text()
        for word in words:
            if "=" in word:
                assert word.partition("=")[0] in text, command
