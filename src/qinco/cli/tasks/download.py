"""`qinco download`: public data sets and models."""

from qinco.cli.keys import Key, task


@task(
    "download",
    "public data sets and models: qinco download NAME ...",
    keys=[
        Key("name", "texts", None, "data sets and models to download"),
        Key("small", "switch", False, "only the first million vectors of a data set"),
        Key("mirror", "text", None, "address that serves the published files instead"),
        "overwrite resume",
    ],
    required=("name",),
    positional="name",
)
def download(settings, console) -> None:
    from dataclasses import asdict

    from qinco.datasets.fetch import download as download_files

    results = download_files(
        settings["name"], small=settings["small"], mirror=settings["mirror"], overwrite=settings["overwrite"],
        progress=console.progress,
    )  # fmt: skip
    files = [asdict(result) for result in results]
    if not settings["json"]:
        console.print_table([list(file.values()) for file in files], ["path", "bytes", "seconds", "state"])
        return
    counts = {state: sum(file["state"] == state for file in files) for state in ("downloaded", "skipped")}
    console.print_result({"files": files} | counts, True)
