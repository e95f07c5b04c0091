"""`qinco convert`: codec files between the authors' form and ours."""

from qinco.cli.keys import ENCODING, task


@task(
    "convert",
    "checkpoints of the authors' code to ours and back",
    keys=[f"model output overwrite {ENCODING}"],
    required=("model", "output"),
    imports=("qinco.codec",),
)
def convert(settings, console) -> None:
    from qinco.cli import coding

    coding.convert(settings, console)
