"""`qinco decode`: codes to vectors."""

import qinco
from qinco.cli.keys import MACHINE, Key, task
from qinco.cli.open import conditions, decode_precision, files_read, open_codec


@task(
    "decode",
    "codes to vectors",
    keys=[
        "model",
        Key("codes", "path", None, "codes to decode"),
        Key("lists", "path", None, "list numbers of the codes, if they are not beside them"),
        f"output overwrite resume prefix {MACHINE} enc_max_bs",
    ],
    required=("model", "codes", "output"),
    imports=("qinco.codec",),
)
def decode(settings, console) -> None:
    codec = open_codec(settings)
    done = qinco.decode_file(
        codec, settings["codes"], settings["output"], lists=settings["lists"], num_steps=settings["prefix"],
        precision=decode_precision(settings), resume=settings["resume"], overwrite=settings["overwrite"],
        inputs=files_read(settings), progress=console.progress,
    )  # fmt: skip
    result = {"output": settings["output"], "num_vectors": done.num_vectors, "decoded": done.num_done}
    result |= {"seconds": done.seconds, "decode_us": done.us_per_vector}
    console.print_result(result | conditions(settings), settings["json"])
