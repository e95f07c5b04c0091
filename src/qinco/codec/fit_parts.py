"""Training a codec of several models, one after the other (PQ-QINCo; QINCo paper, section 5.3).

Shape suffixes: N vectors, D dimension.
"""

from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch

from qinco.atomic import check_output
from qinco.codec.codec import Codec
from qinco.codec.fit import fit
from qinco.codec.plan import check_values, plan_run, split_validation
from qinco.config import require_int
from qinco.errors import ConfigError
from qinco.store.codec import CHECKPOINT_SUFFIX
from qinco.store.run_state import state_path
from qinco.training.codebooks import sample
from qinco.training.processes import Processes
from qinco.vectors.rows import VectorSource, as_source

_OPQ_ROWS = 65_536


def fit_parts(
    x,
    preset: str | None = "qinco2-S",
    *,
    num_parts: int = 2,
    rotate: bool = False,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str | torch.device = "auto",
    on_report: Callable | None = None,
    **settings,
) -> Codec:
    """Train one model after the other; settings are those of `Codec.fit`, num_steps and the like of each part.

    Args:
        x: (N, D) vectors, as for `fit`.
        num_parts: which must divide D.
        rotate: learn a rotation that spreads the variance over the parts (OPQ).
        output: the codec file; the parts' runs lie beside it as `output.part_i` until all are done.
        resume: continue where a run of `output` stopped; a finished one is loaded.
    """
    source = as_source(x, "training vectors")
    check_parts(source, num_parts, preset, **settings)
    if output is not None and Path(output).suffix.lower() == CHECKPOINT_SUFFIX:
        raise ConfigError(f"output={output}: a PQ-QINCo codec is written to a .safetensors file")
    if output is not None:
        check_output(output, overwrite=overwrite, resume=resume)
        unfinished = state_path(f"{output}.part_0").exists()
        if resume and Path(output).exists() and not (unfinished or overwrite):
            return Codec.load(output, device)
    check_values(source)
    rotation_DD = fit_rotation(source, num_parts, settings.get("seed", 0)) if rotate else None
    parts = [
        fit(
            VectorSource(Columns(source, part, num_parts, rotation_DD), f"{source.name}, part {part}"),
            preset, output=None if output is None else Path(f"{output}.part_{part}"), resume=resume,
            overwrite=overwrite, device=device, on_report=on_report, **settings,
        )
        for part in range(num_parts)
    ]  # fmt: skip
    provenance = parts[0].provenance | {"valid_mse": sum(p.provenance["valid_mse"] for p in parts)}
    codec = Codec([part.model for part in parts], parts[0].encode_options, provenance, rotation_DD)
    if output is not None and Processes.is_main_by_environment():
        codec.save(output)
        for part in range(num_parts):
            for suffix in ("", ".last", ".jsonl"):
                Path(f"{output}.part_{part}{suffix}").unlink(missing_ok=True)
    return codec


class Columns:
    """Rows of one part of rotated vectors, computed when they are read."""

    dtype = np.dtype(np.float32)

    def __init__(self, source: VectorSource, part: int, num_parts: int, rotation_DD: np.ndarray | None):
        width = source.dim // num_parts
        self.source, self.columns = source, slice(part * width, (part + 1) * width)
        self.rotation_DD, self.shape = rotation_DD, (len(source), width)

    def __getitem__(self, key) -> np.ndarray:
        x_ND = self.source[key]
        return x_ND[:, self.columns] if self.rotation_DD is None else x_ND @ self.rotation_DD[self.columns].T


def check_parts(
    source: VectorSource, num_parts: int, preset, *, recipe="default", coarse_centroids=None, initial=None, **settings
) -> None:
    """Raise, before any work, what the runs of the parts would."""
    require_int("num_parts (pq)", num_parts, 2)
    if source.dim % num_parts:
        raise ConfigError(f"num_parts (pq) must divide the dimension {source.dim}, not {num_parts}")
    for name, value in (("coarse_centroids", coarse_centroids), ("initial", initial)):
        if value is not None:
            raise ConfigError(f"a PQ-QINCo codec cannot be trained with {name}")
    part = VectorSource(Columns(source, 0, num_parts, None), source.name)
    run = plan_run(part, preset, None, None, recipe, settings)
    split_validation(part, run.train.num_valid, run.model.codebook_size)


def fit_rotation(source: VectorSource, num_parts: int, seed: int) -> np.ndarray:
    """The OPQ rotation of a sample of vectors, float32 (D, D): rotated vectors are x @ rotation.T."""
    x_ND = sample(source, _OPQ_ROWS, seed)
    rotation = faiss.OPQMatrix(source.dim, num_parts)
    rotation.niter = 20
    # Faiss rotates for 256 centroids a part and fails on fewer vectors: small samples get as many as they can fill.
    bits = min(8, max(1, (len(x_ND) // 32).bit_length() - 1))
    quantizer = faiss.ProductQuantizer(source.dim, num_parts, bits)
    quantizer.cp.min_points_per_centroid = 1
    rotation.pq = quantizer
    rotation.train(np.ascontiguousarray(x_ND))
    return faiss.vector_to_array(rotation.A).reshape(source.dim, source.dim).copy()
