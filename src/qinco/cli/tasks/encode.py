"""`qinco encode`: vectors to codes."""

import qinco
from qinco.cli.keys import CLUSTER, ENCODING, MACHINE, TRAINSET, Key, task
from qinco.cli.open import conditions, encode_options, executor_of, files_read, open_codec, open_database, open_trainset


@task(
    "encode",
    "vectors to codes",
    keys=[
        f"model db output ds.db {TRAINSET}",
        Key("encode_trainset", "switch", False, "encode the training set instead of db"),
        "overwrite resume",
        Key("shard", "share", None, "encode only share i of n, written i/n"),
        f"{CLUSTER} {ENCODING} {MACHINE} enc_max_bs",
    ],
    required=("model", "db|encode_trainset", "output"),
    imports=("qinco.codec",),
    is_distributed=True,
)
def encode(settings, console) -> None:
    from qinco.training.processes import Processes

    codec = open_codec(settings)
    source = open_trainset(settings) if settings["encode_trainset"] else open_database(settings)
    done = qinco.encode_file(
        codec, source, settings["output"], encode_options(settings, codec), resume=settings["resume"],
        overwrite=settings["overwrite"], shard=settings["shard"], inputs=files_read(settings),
        executor=executor_of(settings), progress=console.progress,
    )  # fmt: skip
    if not done.complete:
        console.info("the output is complete when all shares are done")
        if Processes.count_by_environment() > 1:  # the process that completes the output reports for all
            return
    result = {"output": settings["output"], "complete": done.complete}
    result |= {} if done.lists is None else {"lists": str(done.lists)}
    result |= {"num_vectors": done.num_vectors, "encoded": done.num_done, "bytes_per_vector": codec.bytes_per_vector}
    result |= {"seconds": done.seconds, "encode_us": done.us_per_vector}
    console.print_result(result | conditions(settings), settings["json"])
