"""`qinco eval`, `eval_valset` and `eval_time`: the error and the speed of a codec."""

from qinco.cli.keys import ENCODING, MACHINE, TRAINSET, task

_IMPORTS = ("qinco.codec", "qinco.search.index")


@task(
    "eval",
    "mean squared error over the database",
    keys=[
        f"model db ds.db {ENCODING} prefix decoder index pairwise_decoder trainset ds.trainset",
        f"search.aq_training_samples seed mse_scale {MACHINE} enc_max_bs",
    ],
    required=("model", "db"),
    imports=_IMPORTS,
)
def eval_database(settings, console) -> None:
    from qinco.cli import measuring

    measuring.eval_database(settings, console)


@task(
    "eval_valset",
    "mean squared error over the last training vectors",
    keys=[f"model {TRAINSET} ds.valset {ENCODING} prefix mse_scale {MACHINE} enc_max_bs"],
    required=("model", "trainset|db"),
    imports=_IMPORTS,
)
def eval_validation(settings, console) -> None:
    from qinco.cli import measuring

    measuring.eval_validation(settings, console)


@task(
    "eval_time",
    "microseconds per vector, encoding and decoding",
    keys=[f"model db ds.db {ENCODING} {MACHINE} enc_max_bs"],
    required=("model", "db"),
    imports=_IMPORTS,
)
def eval_time(settings, console) -> None:
    from qinco.cli import measuring

    measuring.eval_time(settings, console)
