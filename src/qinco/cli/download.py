"""`qinco download`: published data sets and models, to where the other tasks look for them."""

from dataclasses import asdict

from qinco.cli.console import Console
from qinco.cli.overrides import Settings
from qinco.datasets.fetch import download as download_files


def download(settings: Settings, console: Console) -> None:
    """Download the files of data sets and models that are not there yet."""
    results = download_files(
        settings["name"],
        small=settings["small"],
        mirror=settings["mirror"],
        overwrite=settings["overwrite"],
        progress=console.progress,
    )
    if not settings["json"]:
        console.print_table([list(asdict(file).values()) for file in results], ["path", "bytes", "seconds", "state"])
        return
    counts = {state: sum(file.state == state for file in results) for state in ("downloaded", "skipped")}
    console.print_result({"files": [asdict(file) for file in results]} | counts, True)
