"""`task=download`: published data sets and models, fetched to where the other tasks look for them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qinco.cli.console import Console
from qinco.cli.overrides import Settings
from qinco.datasets.catalogue import PublishedFile, find_files
from qinco.datasets.fetch import Notice, Progress, Report, fetch, is_present, part_path


def download(settings: Settings, console: Console) -> None:
    """Fetch the files of data sets and models that are not there yet."""
    files = find_files(settings["name"], settings["small"], settings["mirror"])
    try:
        with _reporter(console) as report:
            results = _fetch_all(files, settings["overwrite"], console, report)
    except KeyboardInterrupt:
        kept = [str(part_path(file)) for file in files if part_path(file).exists()]
        message = f"what has arrived is kept in {', '.join(kept)}, and the same command continues it" if kept else ""
        raise KeyboardInterrupt(message) from None
    if not settings["json"]:
        console.print_table([list(result.values()) for result in results], ["path", "bytes", "seconds", "state"])
        return
    states = [result["state"] for result in results]
    counts = {state: states.count(state) for state in ("downloaded", "skipped")}
    console.print_result({"files": results} | counts, True)


def _fetch_all(files: list[PublishedFile], overwrite: bool, console: Console, report: Report) -> list[dict]:
    # What is in the way is found before the first hour of work.
    present = {file for file in files if is_present(file, report, overwrite=overwrite)}
    results = []
    for file in files:
        begun = time.monotonic()
        if file in present:
            console.info(f"{file.target} is there already: skipped")
        else:
            console.info(f"{file.target} from {file.address}")
            fetch(file, report)
        seconds = 0.0 if file in present else time.monotonic() - begun
        state = "skipped" if file in present else "downloaded"
        results.append(
            {"path": file.target, "bytes": Path(file.target).stat().st_size, "seconds": seconds, "state": state}
        )
    return results


@contextmanager
def _reporter(console: Console) -> Iterator[Report]:
    """A function to report to: lines, and a progress for each stage of each file."""
    stage, bar, progress = None, None, None

    def close() -> None:
        nonlocal stage, bar
        if bar is not None:
            bar.__exit__(None, None, None)
        stage = bar = None

    def report(event: Progress | Notice) -> None:
        nonlocal stage, bar, progress
        if isinstance(event, Notice):
            close()
            console.info(event.text)
        elif event.total is not None:
            if stage != (event.stage, event.target):
                close()
                stage = event.stage, event.target
                bar = console.progress(event.total, "byte", f"{event.stage} {event.target}", event.done)
                progress = bar.__enter__()
            progress.update(event.done)

    try:
        yield report
    finally:
        close()
