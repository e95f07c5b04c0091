"""`qinco serve`: collections over HTTP."""

from pathlib import Path

from qinco.cli import collections
from qinco.cli.keys import Key, task
from qinco.cli.tasks.collection_write import BYTES, FIELDS, MINUTES
from qinco.errors import ConfigError, needs_extra

_PORT = 6333


@task(
    "serve",
    "answer clients of Qdrant, and others, from collections: qinco serve docs.qinco, or a folder of them",
    keys=[
        Key("path", "paths", None, "collections, a folder of them, or files of records, which are indexed first"),
        Key("host", "text", "127.0.0.1", "address to listen on; others than this machine's own need a key"),
        Key("port", "integer", _PORT, "port to listen on; 0: any", minimum=0),
        Key("api_key_file", "path", None, "file with a key, and perhaps one for reading in its second line; by default "
            "QINCO_API_KEY and QINCO_READ_ONLY_API_KEY"),
        Key("read_only", "switch", False, "change nothing, so that another process may"),
        "cluster",
        Key("insecure", "switch", False, "listen on other addresses without a key"),
        Key("auto_optimize", "switch", True, "compress new vectors in the background when there are many"),
        Key("log_requests", "switch", False, "log every request"),
        "output",
        BYTES,
        MINUTES,
        "metric id payload vector",
        FIELDS,
        "model device cpu threads",
    ],
    required=("path",),
    positional="path",
    imports=("qinco.collection.collection",),
)  # fmt: skip
def serve(settings, console) -> None:
    with needs_extra("qinco serve", "fastapi", "server"), needs_extra("qinco serve", "uvicorn", "server"), \
         needs_extra("qinco serve", "prometheus_client", "server"), \
         needs_extra("qinco serve", "qdrant_client", "server"):  # fmt: skip
        from qinco.server.catalog import Catalog
        from qinco.server.run import serve as run
        from qinco.server.settings import ServerSettings

    names = {"host": "host", "port": "port", "read_only": "read_only", "insecure": "insecure",
             "auto_optimize": "optimize", "log_requests": "log_requests"}  # fmt: skip
    chosen = ServerSettings.from_environment(
        settings["api_key_file"], **{field: settings[key] for key, field in names.items()}
    )
    paths = settings["path"]
    if _is_source(paths):
        paths = [_indexed(settings, console)]
    with Catalog.open(
        *paths, read_only=chosen.read_only, cluster=settings["cluster"], timeout=chosen.timeout
    ) as catalog:
        run(catalog, chosen)


def _is_source(paths) -> bool:
    """Whether paths are files of records, and neither collections nor a folder of them."""
    are_folders = [Path(path).is_dir() for path in paths]
    if all(are_folders):
        return False
    if any(are_folders):
        other = paths[are_folders.index(False)]
        raise ConfigError(
            f"path={other} is no collection, and others are: serve either collections or files of records"
        )
    return any(Path(path).suffix not in ("", ".qinco") for path in paths)


def _indexed(settings, console) -> Path:
    """The collection of the records of files, made now unless it is there."""
    from qinco.collection.filling import is_unfinished
    from qinco.collection.schema import FILE

    first = Path(settings["path"][0].partition(":")[0])
    if settings["output"] is None and "*" in first.name:
        raise ConfigError(
            f"path={settings['path'][0]} is a pattern: give output=NAME.qinco, the collection to make of it"
        )
    folder = Path(settings["output"] or first.with_suffix(".qinco").name)
    if (folder / FILE).is_file() and not is_unfinished(folder):
        console.info(f"{folder} is there, and served as it is: remove it to index {first} anew")
        return folder
    if settings["read_only"]:
        raise ConfigError(f"read_only=true makes no collection of {first}: make it with qinco index, or leave that out")
    source = settings["path"][0] if len(settings["path"]) == 1 else list(settings["path"])
    collections.create_collection(settings, console, folder, source).close()
    return folder
