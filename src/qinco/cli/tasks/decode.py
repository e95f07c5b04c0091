"""`qinco decode`: codes to vectors."""

from qinco.cli.keys import MACHINE, Key, task


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
    from qinco.cli import coding

    coding.decode(settings, console)
