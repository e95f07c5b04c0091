"""Until the tasks have moved to `qinco.cli.tasks`."""

from qinco.cli.open import (
    adjust_codec,
    conditions,
    decode_precision,
    encode_options,
    files_read,
    find_device,
    mse_scale,
    num_steps,
    open_codec,
    open_database,
    open_queries,
    open_trainset,
)

device_of, adapted, prefix, machine = find_device, adjust_codec, num_steps, conditions
__all__ = [
    "decode_precision", "encode_options", "files_read", "mse_scale", "open_codec", "open_database", "open_queries",
    "open_trainset",
]  # fmt: skip
