"""The tasks between vectors and codes, and between codec files: encode, decode, convert, ivf_centroids."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from qinco.atomic import check_output
from qinco.cli import inputs
from qinco.cli.console import Console, Progress
from qinco.cli.overrides import Settings
from qinco.codec.centroids import MAX_POINTS_PER_CENTROID, kmeans
from qinco.codec.decode_file import decode_file, open_codes
from qinco.codec.encode_file import Share, encode_file
from qinco.config import checkpoint_search
from qinco.errors import ConfigError
from qinco.store.code_files import lists_beside
from qinco.store.codec import CHECKPOINT_SUFFIX
from qinco.training.processes import Processes


def encode(settings: Settings, console: Console) -> None:
    """Vectors to codes, in shards: a folder of them, or the file that they become."""
    codec = inputs.open_codec(settings)
    source = inputs.open_trainset(settings) if settings["encode_trainset"] else inputs.open_database(settings)
    codec.check_dim(source)
    rule = inputs.encode_options(settings, codec)
    share = Share.of_process(*(settings["shard"] or (0, 1)))
    begun = time.monotonic()
    kept = _keeping("the shards that are done")
    with kept, console.progress(len(source) // share.count, "vector", "encoding") as progress:
        complete = encode_file(
            codec,
            source,
            settings["output"],
            rule,
            resume=settings["resume"],
            overwrite=settings["overwrite"],
            share=share,
            inputs=inputs.files_read(settings),
            on_progress=_report(progress),
        )
    encoded = progress.done - progress.start
    seconds = time.monotonic() - begun
    if not complete:
        console.info(f"share {share.index} of {share.count} is done; the set is complete when the others are")
        if Processes.count_by_environment() > 1:  # the process that completes the set reports for all
            return
    result = {"output": settings["output"], "complete": complete}
    beside = lists_beside(settings["output"])
    if codec.is_ivf and complete and Path(settings["output"]).suffix.lower() in (".npy", ".ivecs", ".raw"):
        result["lists"] = str(beside)
    result |= {
        "num_vectors": len(source),
        "encoded": encoded,
        "bytes_per_vector": codec.bytes_per_vector,
        "seconds": seconds,
        "encode_us": seconds / encoded * 1e6 if encoded else None,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def decode(settings: Settings, console: Console) -> None:
    """Codes of any form to a file of vectors."""
    codec = inputs.open_codec(settings)
    codes = open_codes(codec, settings["codes"], settings["lists"])
    prefix = inputs.prefix(settings, codec)
    begun = time.monotonic()
    kept = _keeping("the vectors that are decoded")
    with kept, console.progress(len(codes), "vector", "decoding") as progress:
        decode_file(
            codec,
            codes,
            settings["output"],
            prefix=prefix,
            precision=inputs.decode_precision(settings),
            resume=settings["resume"],
            overwrite=settings["overwrite"],
            inputs=[*inputs.files_read(settings), lists_beside(settings["codes"])],
            on_progress=_report(progress),
        )
    decoded = progress.done - progress.start
    seconds = time.monotonic() - begun
    result = {
        "output": settings["output"],
        "num_vectors": len(codes),
        "decoded": decoded,
        "seconds": seconds,
        "decode_us": seconds / decoded * 1e6 if decoded else None,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


@contextmanager
def _keeping(what: str) -> Iterator[None]:
    """Let Ctrl-C say what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{what} are kept; the same command with resume=true continues") from None


def _report(progress: Progress) -> Callable[[int], None]:
    """Reports to a progress of which the first call says what an earlier run has done."""

    def begin(done: int) -> None:
        nonlocal report
        progress.start, report = done, progress.update
        progress.update(done)

    report = begin
    return lambda done: report(done)


def convert(settings: Settings, console: Console) -> None:
    """A codec file of one form to another: .pt is the authors' second format, .safetensors ours."""
    codec = inputs.open_codec(settings)
    output = Path(settings["output"])
    if output.suffix.lower() not in (CHECKPOINT_SUFFIX, ".safetensors"):
        raise ConfigError(f"output={output}: codecs are written to .safetensors (ours) or .pt (the authors') files")
    check_output(output, overwrite=settings["overwrite"], inputs=inputs.files_read(settings))
    rule = inputs.encode_options(settings, codec)
    if output.suffix.lower() == CHECKPOINT_SUFFIX and rule.num_pairs is not None and settings["C"] is None:
        config = codec.config
        known = checkpoint_search(config.codebook_size, config.has_preselector, config.starts_from_coarse)
        console.warn(
            f"the authors' code does not know C={rule.num_pairs} B={rule.beam_width}: A={known.num_candidates} "
            f"B={known.beam_width} are stored; give A= and B= for others"
        )
        rule = known
    codec.with_options(rule).save(output)
    result = {
        "output": str(output),
        "bytes": output.stat().st_size,
        "bytes_per_vector": codec.bytes_per_vector,
        "encode": rule.to_dict(),
    }
    console.print_result(result, settings["json"])


def ivf_centroids(settings: Settings, console: Console) -> None:
    """Coarse centroids by k-means, in data space: float32 (V, D)."""
    source, count = inputs.open_trainset(settings), settings["ivf_K"]
    check_output(settings["output"], overwrite=settings["overwrite"], inputs=inputs.files_read(settings))
    begun = time.monotonic()
    kmeans(
        source,
        count,
        seed=settings["seed"],
        device=inputs.device_of(settings),
        output=settings["output"],
        overwrite=settings["overwrite"],
        progress=console.progress,
    )
    result = {
        "output": settings["output"],
        "num_lists": count,
        "dim": source.dim,
        "num_vectors": min(len(source), MAX_POINTS_PER_CENTROID * count),
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | {"threads": torch.get_num_threads()}, settings["json"])
