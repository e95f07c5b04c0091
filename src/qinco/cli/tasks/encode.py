"""`qinco encode`: vectors to codes."""

from qinco.cli.keys import ENCODING, MACHINE, TRAINSET, Key, task


@task(
    "encode",
    "vectors to codes",
    keys=[
        f"model db output ds.db {TRAINSET}",
        Key("encode_trainset", "switch", False, "encode the training set instead of db"),
        "overwrite resume",
        Key("shard", "share", None, "encode only share i of n, written i/n"),
        f"{ENCODING} {MACHINE} enc_max_bs",
    ],
    required=("model", "db", "output"),
    required_with={"encode_trainset": ("model", "trainset|db", "output")},
    imports=("qinco.codec",),
    is_distributed=True,
)
def encode(settings, console) -> None:
    from qinco.cli import coding

    coding.encode(settings, console)
