"""`qinco bench`: encoding and decoding speed of this machine."""

from qinco.cli.keys import ENCODING, MACHINE, task


@task(
    "bench",
    "encoding and decoding speed of this machine",
    keys=[f"model model_args M K L de dh qinco1_mode {ENCODING} {MACHINE}"],
    imports=("qinco.codec",),
)
def bench(settings, console) -> None:
    from qinco.cli import bench as measuring

    measuring.bench(settings, console)
