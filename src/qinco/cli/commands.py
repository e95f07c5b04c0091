"""Which function does each task. Its module is imported when the task runs: few of them need torch."""

import os
from collections.abc import Callable
from importlib import import_module

from qinco.cli.console import Console
from qinco.cli.keys import KEYS
from qinco.cli.overrides import Settings
from qinco.errors import ConfigError

_SHARED = ("train", "encode")  # several processes share the work of these
_MOST_THREADS = 256

_TASKS = {
    "train": "training.train",
    "eval": "measuring.eval_database",
    "eval_valset": "measuring.eval_validation",
    "eval_time": "measuring.eval_time",
    "search": "searching.search",
    "encode": "coding.encode",
    "decode": "coding.decode",
    "convert": "coding.convert",
    "ivf_centroids": "coding.ivf_centroids",
    "build_index": "indexing.build_index",
    "train_pairwise_decoder": "indexing.train_pairwise_decoder",
    "download": "download.download",
    "info": "describe.info",
    "doctor": "doctor.doctor",
    "bench": "bench.bench",
}


def load(settings: Settings) -> Callable[[Settings, Console], None]:
    """The function that does what the command line asks for, with all that is slow to import.

    Its results go to standard output, everything else to standard error.
    """
    if settings.task not in _SHARED and os.environ.get("RANK", "0") != "0":
        return lambda settings, console: None  # torchrun started several processes for what one does
    if settings["threads"] is not None and settings.task in KEYS["threads"].tasks:
        most = max(_MOST_THREADS, 4 * (os.cpu_count() or 1))
        if settings["threads"] > most:
            raise ConfigError(f"threads={settings['threads']} is more than can be started: give at most {most}")
        import torch

        torch.set_num_threads(settings["threads"])
    module, function = _TASKS[settings.task].split(".")
    return getattr(import_module(f"qinco.cli.{module}"), function)
