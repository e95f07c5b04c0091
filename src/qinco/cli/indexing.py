"""The tasks build_index and train_pairwise_decoder."""

import time
from dataclasses import asdict
from pathlib import Path

from qinco.atomic import check_output
from qinco.cli import inputs
from qinco.cli.console import Console
from qinco.cli.overrides import Settings
from qinco.errors import ConfigError
from qinco.search.build import build_index as build
from qinco.search.code_file import CodeFile, open_codes
from qinco.search.fit import fit_pairwise_decoder
from qinco.store.decoder import save_pairwise
from qinco.vectors.rows import open_vectors

_DECODER_SUFFIXES = (".safetensors", ".pt")


def build_index(settings: Settings, console: Console) -> None:
    """Look-up tables fitted to training vectors and their codes, and an index of the database's codes."""
    codec = None if settings["model"] is None else inputs.open_codec(settings)
    _check_number_of_centroids(settings)
    begun = time.monotonic()
    done = build(
        _open_codes(settings, "encoded_db", codec).limit(settings["ds.db"]),
        settings["output"],
        codec=codec,
        train_codes=_open_codes(settings, "encoded_trainset", codec).limit(settings["ds.trainset"]),
        train_vectors=inputs.open_trainset(settings),
        centroids=settings["ivf_centroids"],
        metric=settings["metric"],
        pairwise=settings["pairwise_decoder"],
        num_training=settings["search.aq_training_samples"],
        index_key=settings["search.index_key"] if settings.given("search.index_key") else None,
        overwrite=settings["overwrite"],
        seed=settings["seed"],
        progress=console.progress,
    )
    result = asdict(done) | {"mse_lookup": done.mse_lookup * inputs.mse_scale(settings)}
    result["seconds"] = time.monotonic() - begun
    console.print_result(result | inputs.machine(settings), settings["json"])


def train_pairwise_decoder(settings: Settings, console: Console) -> None:
    """Tables of pairs of codes, fitted to what look-up tables leave of training vectors."""
    output = Path(settings["output"])
    if output.suffix.lower() not in _DECODER_SUFFIXES:
        raise ConfigError(
            f"output={output}: a pairwise decoder is written to a .safetensors (ours) or .pt (the authors') file"
        )
    check_output(output, overwrite=settings["overwrite"], inputs=inputs.files_read(settings))
    codec = None if settings["model"] is None else inputs.open_codec(settings)
    begun, scale = time.monotonic(), inputs.mse_scale(settings)
    fitted = fit_pairwise_decoder(
        inputs.open_trainset(settings),
        _open_codes(settings, "encoded_trainset", codec).limit(settings["ds.trainset"]),
        codec=codec,
        centroids=settings["ivf_centroids"],
        pairs_per_code=settings["n_pairwise_codebooks"],
        dtype=settings["tables"],
        moves_centroids=output.suffix.lower() == ".safetensors",  # the authors' form adds to the codec's centroids
        num_training=settings["search.aq_training_samples"],
        seed=settings["seed"],
        progress=console.progress,
    )
    save_pairwise(output, fitted.decoder)
    console.info("mse_lookup and mse_pairwise are of held-out training vectors, which only the codec may have seen")
    result = {
        "output": str(output),
        "bytes": output.stat().st_size,
        "num_pairs": fitted.decoder.num_pairs,
        "num_vectors": fitted.num_vectors,
        "mse_lookup": fitted.mse_lookup * scale,
        "mse_pairwise": fitted.mse * scale,
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def _open_codes(settings: Settings, name: str, codec) -> CodeFile:
    return open_codes(settings[name], codec, settings["M"], settings["K"])


def _check_number_of_centroids(settings: Settings) -> None:
    path, wanted = settings["ivf_centroids"], settings["ivf_K"]
    if path is not None and settings.given("ivf_K") and wanted is not None:
        found = len(open_vectors(path))
        if wanted != found:
            raise ConfigError(f"ivf_K={wanted}, but {path} holds {found} centroids")
