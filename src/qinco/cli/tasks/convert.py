"""`qinco convert`: codec files between the authors' form and ours."""

from pathlib import Path

import qinco
from qinco.cli.keys import ENCODING, task
from qinco.cli.open import encode_options, files_read, open_codec


@task(
    "convert",
    "checkpoints of the authors' code to ours and back",
    keys=[f"model output overwrite {ENCODING}"],
    required=("model", "output"),
    imports=("qinco.codec",),
)
def convert(settings, console) -> None:
    codec = open_codec(settings)
    options = encode_options(settings, codec)
    is_chosen = settings["A"] is not None or settings["C"] is not None
    converted = qinco.convert_codec(
        codec.with_options(options), settings["output"], options if is_chosen else None,
        overwrite=settings["overwrite"], inputs=files_read(settings),
    )  # fmt: skip
    result = {"output": settings["output"], "bytes": Path(settings["output"]).stat().st_size}
    result |= {"bytes_per_vector": converted.bytes_per_vector, "encode": converted.encode_options.to_dict()}
    console.print_result(result, settings["json"])
