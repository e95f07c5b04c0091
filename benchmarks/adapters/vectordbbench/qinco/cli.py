"""`vectordbbench qinco`: a run from the command line."""

from typing import Annotated, Unpack

import click
from vectordb_bench.backend.clients import DB
from vectordb_bench.cli.cli import CommonTypedDict, cli, click_parameter_decorators_from_typed_dict, run


class QincoTypedDict(CommonTypedDict):
    folder: Annotated[str, click.option("--folder", type=str, help="Folder of collections", required=True)]
    bytes: Annotated[int, click.option("--bytes", type=int, default=16, help="Bytes of a code", show_default=True)]
    minutes: Annotated[float, click.option("--minutes", type=float, default=10, help="Minutes of training")]
    nprobe: Annotated[int, click.option("--nprobe", type=int, default=0, help="Lists that are scanned; 0: as chosen")]
    num_short: Annotated[int, click.option("--num-short", type=int, default=0, help="Vectors that are decoded")]


@cli.command()
@click_parameter_decorators_from_typed_dict(QincoTypedDict)
def Qinco(**parameters: Unpack[QincoTypedDict]):
    from .config import QincoConfig, QincoIndexConfig

    chosen = {name: parameters[name] for name in ("bytes", "minutes", "nprobe", "num_short")}
    run(
        db=DB.Qinco,
        db_config=QincoConfig(db_label=parameters["db_label"], folder=parameters["folder"]),
        db_case_config=QincoIndexConfig(**chosen),
        **parameters,
    )
