"""Which function does each task. Its module is imported when the task runs: few of them need torch."""

from importlib import import_module

from qinco.cli.console import Console
from qinco.cli.overrides import Settings

_TASKS = {
    "train": "training.train",
    "eval": "measuring.eval_database",
    "eval_valset": "measuring.eval_validation",
    "eval_time": "measuring.eval_time",
    "search": "measuring.search",
    "encode": "coding.encode",
    "decode": "coding.decode",
    "convert": "coding.convert",
    "ivf_centroids": "coding.ivf_centroids",
    "download": "download.download",
    "info": "describe.info",
    "doctor": "doctor.doctor",
    "bench": "bench.bench",
}


def run(settings: Settings, console: Console) -> None:
    """Do what the command line asks for; results go to standard output, everything else to standard error."""
    if settings["threads"] is not None:
        import torch

        torch.set_num_threads(settings["threads"])
    module, function = _TASKS[settings.task].split(".")
    getattr(import_module(f"qinco.cli.{module}"), function)(settings, console)
