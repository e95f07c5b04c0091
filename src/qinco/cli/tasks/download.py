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
    from qinco.cli import download as fetching

    fetching.download(settings, console)
