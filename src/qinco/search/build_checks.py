"""What `build_index` is told about its output and its metric, before it begins and once it has seen vectors."""

import logging
from pathlib import Path

import numpy as np

from qinco.atomic import check_output
from qinco.errors import ConfigError
from qinco.search.build import FAISS_SUFFIX
from qinco.search.code_file import CodeFile
from qinco.search.metric import L2, Metric, choose_metric
from qinco.search.sample import FitSample
from qinco.store.code_files import is_directory, is_folder
from qinco.store.folder import check_folder_output
from qinco.store.manifest import MANIFEST, is_kind
from qinco.vectors.rows import VectorSource

log = logging.getLogger(__name__)
_SUFFIX = ".index"  # that the name of a folder may have
_MAX_LENGTH_SPREAD = 0.01  # of vectors that count as of one length


def stated_metric(given: str | None, vectors: VectorSource | None, output: Path) -> tuple[str, bool]:
    """The metric of an index, and whether it is "cosine" only because vectors have length 1; faiss's files lack it."""
    is_faiss = output.suffix.lower() == FAISS_SUFFIX
    metric = choose_metric(given, vectors, compared=None if is_faiss else vectors)
    return metric, given is None and metric != choose_metric(None, vectors)


def measured_metric(sample: FitSample, name: str, is_default: bool) -> Metric:
    """The metric of vectors. Where their lengths differ, "cosine" is "l2" if it is only a default, else an error."""
    if name != "cosine":
        return Metric(name)
    lengths = np.concatenate([np.linalg.norm(x_nD, axis=1) for *_, x_nD in sample.blocks(held=None)])
    low, high = float(lengths.min()), float(lengths.max())
    if not 0 < high * (1 - _MAX_LENGTH_SPREAD) <= low and is_default:
        log.info("others of %s have other lengths, and metric=l2 is used", sample.name)
        return L2
    if not 0 < high * (1 - _MAX_LENGTH_SPREAD) <= low:
        raise ConfigError(f"metric=cosine is for codes of vectors of one length, not of {low:.4g} to {high:.4g} "
                          f"as in {sample.name}: encode vectors of one length, or give metric=l2")  # fmt: skip
    return Metric(name, float(lengths.mean()))


def faiss_key(index_key: str | None, num_lists: int, file: CodeFile) -> str:
    """faiss's name of the kind of index, with the sizes filled in; ConfigError where it is none that can be written."""
    from qinco.compat.faiss_files import check_index_key

    key = index_key or f"IVF{num_lists}_HNSW32,RQ{file.num_codes}x{file.codebook_size.bit_length() - 1}_Nqint8"
    for name, value in (("ivf_K", num_lists), ("M", file.num_codes), ("K", file.codebook_size)):
        key = key.replace(f"${{{name}}}", str(value))
    check_index_key(key, num_lists, file.num_codes, file.codebook_size)
    return key


def check_index_output(output: Path, metric: str, pairwise, index_key: str | None, overwrite: bool) -> bool:
    """Whether the index is to be a faiss file; raises ConfigError unless `output` can be that or a folder."""
    if output.suffix.lower() == FAISS_SUFFIX and not is_directory(output):
        if metric == "cosine" or pairwise is not None:
            raise ConfigError("faiss files store no metric=cosine or pairwise_decoder=: write a folder, output=NAME")
        check_output(output, overwrite=overwrite)
        return True
    if not (is_folder(output) or output.suffix.lower() == _SUFFIX or is_kind(output, "index")):
        raise ConfigError(f"output={output}: an index is written to a folder, NAME or NAME{_SUFFIX}, or a file "
                          f"NAME{FAISS_SUFFIX}")  # fmt: skip
    if index_key is not None:
        raise ConfigError(f"index_key= is the kind of a {FAISS_SUFFIX} file, and output={output} is a folder")
    check_output(output / MANIFEST if is_directory(output) else output, overwrite=True)
    check_folder_output(output, "index")
    if is_kind(output, "index") and not overwrite:
        raise ConfigError(f"{output} holds an index: give overwrite=true to replace it")
    return False
