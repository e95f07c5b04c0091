"""What this machine and this installation have, and whether they compute what they should."""

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import numpy as np

from qinco.codec.codec import Codec
from qinco.config import ENGINE_MODULES, PRESETS, EncodeOptions, ModelConfig
from qinco.datasets.catalogue import DATASETS
from qinco.engines.engine import candidate_precision, choose_engine, find_engine
from qinco.engines.numpy_engine import NumpyDecoder
from qinco.errors import ConfigError
from qinco.machine import (
    allowed_cores,
    cpuinfo,
    free_memory,
    group_limits,
    num_threads,
    processor_name,
    total_memory,
    usable_cores,
)
from qinco.maths.devices import CPU, choose_device, multiplies_bf16_fast
from qinco.model.weights import Weights, random_weights
from qinco.native import library
from qinco.progress import counted
from qinco.version import __version__

# Instruction sets that decide how fast vectors are encoded: their name here, and in /proc/cpuinfo.
_FEATURES = {
    "x86_64": {"avx2": "avx2", "fma": "fma", "avx512f": "avx512f", "avx512_bf16": "avx512_bf16",
               "avx512_vbmi": "avx512vbmi", "amx_bf16": "amx_bf16"},
    "aarch64": {"neon": "asimd", "bf16": "bf16"},
}  # fmt: skip
_REQUIREMENT = re.compile(r"([\w.-]+)(?:.*?>=\s*([\w.]+))?(?:.*extra == \W([\w-]+))?")
_MSE_TOLERANCE = 1.06  # of the best codes; those that are searched have 1.045 times their error
# Extras of those who work on qinco: nobody else misses their packages.
_DEVELOPERS = "dev", "docs", "integrations", "release"
_THREADS = "QINCO_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT"


def check_installation() -> dict:
    """Inspect this machine and this installation, and check that they compute what they should.

    Returns:
        Facts as JSON values, by section. "problems" is a list of sentences, "self_check" is "ok" or "failed", with the
        reason as the last problem.

    Example:
        >>> qinco.check_installation()["problems"]
        []
    """
    facts, problems = inspect()
    try:
        failure = self_check(choose_device("auto"))
    except Exception as error:  # any error is a finding
        failure = f"{type(error).__name__}: {error}"
    if failure is not None:
        problems.append(f"the self-check failed: {failure}")
    return facts | {"problems": problems, "self_check": "ok" if failure is None else "failed"}


def inspect(root: Path = Path("/")) -> tuple[dict, list[str]]:
    """Facts by section, and the problems that they show, each a sentence. `root` holds /proc, /sys and /dev."""
    versions, not_installed, problems = _packages()
    info, limits, device = cpuinfo(root), group_limits(root), choose_device("auto")
    flags = (info.get("flags") or info.get("Features") or "").split()
    features = {name: flag in flags for name, flag in _FEATURES.get(platform.machine(), {}).items() if flags}
    tiny = ModelConfig(128, **PRESETS["qinco2-S"])
    libraries = _libraries()
    facts = {
        "versions": {"qinco": __version__, "python": platform.python_version()} | versions,
        "not_installed": not_installed,
        "processor": {"name": processor_name(root), "platform": platform.platform()} | features,
        "cores": {"physical": _physical_cores(root), "logical": os.cpu_count(),
                  "allowed": allowed_cores(), "quota": limits.cores},
        "threads": {"used": num_threads()} | {name: os.environ.get(name) for name in _THREADS},
        "memory": {"total_bytes": total_memory(),
                   "available_bytes": free_memory(root), "limit_bytes": limits.memory},
        "libraries": libraries,
        "devices": _devices(),
        "automatic": {  # what "auto" means for a model of a published size
            "device": str(device),
            "candidates": candidate_precision("auto", device, tiny),
            "reconstructions": "float32", "engine": choose_engine("auto", tiny, device).name,
            "native_kernels": library.level() if library.is_available() else "none",
        },
        "folders": {"current": _folder(Path.cwd), "temporary": _folder(tempfile.gettempdir)},
        "data_sets": _data_sets(),
    }  # fmt: skip
    return facts, problems + list(_machine_problems(root, libraries))


def _packages() -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Versions of the packages that qinco's metadata names, how to install the others, and problems with them."""
    versions, not_installed, problems = {}, {}, []
    try:
        lines = metadata.requires("qinco") or []
    except metadata.PackageNotFoundError:
        return {}, {}, ["qinco runs from a folder without being installed: pip install -e ."]
    for name, minimum, extra in (match.groups() for match in map(_REQUIREMENT.match, lines) if match):
        if name == "qinco" or extra in _DEVELOPERS:
            continue
        with suppress(metadata.PackageNotFoundError):
            versions.setdefault(name, metadata.version(name))
        if name not in versions:
            not_installed[name] = f"pip install 'qinco[{extra}]'" if extra else "pip install --upgrade qinco"
            problems += [] if extra else [f"{name} is missing: pip install --upgrade qinco"]
            continue
        has, needs = ([int(digits) for digits in re.findall(r"\d+", text or "")] for text in (versions[name], minimum))
        if has < needs:
            problems.append(f"{name} {versions[name]} is too old: pip install --upgrade '{name}>={minimum}'")
    return versions, not_installed, problems


def _physical_cores(root: Path) -> int | None:
    folders = root.glob("sys/devices/system/cpu/cpu[0-9]*/topology")
    cores = {tuple((path / name).read_text("utf-8") for name in ("physical_package_id", "core_id")) for path in folders}
    return len(cores) or None


def _folder(find) -> dict:
    try:
        folder = find()
        return {"path": str(folder), "free_bytes": shutil.disk_usage(folder).free,
                "writable": os.access(folder, os.W_OK)}  # fmt: skip
    except OSError as error:  # the current folder has been removed, or there is no temporary one
        return {"path": None, "free_bytes": None, "writable": False, "reason": str(error)}


def _data_sets() -> dict:
    """The data sets of which files are there, with the files that are missing."""
    missing = {
        name: [path for path in (dataset.database, dataset.trainset, dataset.queries, dataset.ground_truth)
               if not Path(path).is_file()]
        for name, dataset in DATASETS.items()
    }  # fmt: skip
    return {name: {"files": 4 - len(paths), "missing": paths} for name, paths in missing.items() if len(paths) < 4}


def _libraries() -> dict:
    """How torch and faiss were built, of those that are installed."""
    facts = {}
    with suppress(ImportError):
        import torch

        facts = {
            "torch_kernels": torch.backends.cpu.get_cpu_capability(), "torch_bf16": _torch_multiplies_bf16(),
            "torch_onednn": torch.backends.mkldnn.is_available(), "torch_mkl": torch.backends.mkl.is_available(),
            "torch_cuda": torch.version.cuda,
        }  # fmt: skip
    with suppress(ImportError):
        import faiss

        facts["faiss"] = faiss.get_compile_options().strip()
    return facts


def _torch_multiplies_bf16() -> bool | None:
    """Whether torch uses the processor's instructions for bf16; None where it does not tell."""
    import torch

    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else None
    return None if has is None else bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def _devices() -> dict:
    devices: dict[str, dict] = {CPU: {"fast_bf16": multiplies_bf16_fast()}}
    with suppress(ImportError):
        import torch

        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            device, properties = f"cuda:{index}", torch.cuda.get_device_properties(index)
            devices[device] = {"name": properties.name, "memory_bytes": properties.total_memory,
                               "fast_bf16": multiplies_bf16_fast(device)}  # fmt: skip
    return devices


def _machine_problems(root: Path, libraries: dict) -> Iterator[str]:
    if multiplies_bf16_fast() and libraries.get("torch_bf16") is False:
        yield "the processor is fast at bf16, but torch does not detect it, so training is slow: upgrade torch"
    if multiplies_bf16_fast() and libraries.get("torch_onednn") is False:
        yield "torch is built without oneDNN, so it is slow in bf16: give precision=float32"
    if not library.is_available():
        yield "the compiled kernels are missing, so encoding is slow: install a C++ compiler, then reinstall qinco"
    if (root / "dev/nvidiactl").exists() and choose_device("auto") == CPU:
        yield "the NVIDIA GPU is not used: install a CUDA build of torch that fits the driver"
    threads, cores = num_threads(), usable_cores(root)
    if threads > cores:
        uses = f"{threads} threads are used on {counted(cores, 'core')}"
        yield f"{uses}: give threads={cores}, or set QINCO_NUM_THREADS={cores}"


def self_check(device: str) -> str | None:
    """Encode with a tiny model in every engine and compare with the plain network; what differs, or None."""
    config = ModelConfig(8, 3, 16, 2, 6, 12, starts_from_coarse=True, num_lists=4)
    codec = Codec(random_weights(config), EncodeOptions(num_pairs=64, beam_width=16)).to(device)
    x, (weights,) = np.random.default_rng(0).standard_normal((256, config.dim), np.float32), codec.weights
    offsets_NVD = weights.normalize(x)[:, None] - weights.coarse_centroids_VD
    lists_N = np.square(offsets_NVD).sum(2).argmin(1)
    if not np.array_equal(np.asarray(codec.assign_lists(x)), lists_N):
        return "the nearest coarse centroids are not found"
    least = _least_error(weights, x, lists_N)
    for engine in _engines(config, device):
        for precision in ("float32", "bf16") if multiplies_bf16_fast(device) else ("float32",):
            chosen = codec.with_options(codec.encode_options.override(engine=engine, precision=precision))
            codes = chosen.encode(x, progress=False)
            decoded_ND, expected_ND = chosen.decode(codes), NumpyDecoder(weights).decode(codes.codes, lists_N)
            if not np.allclose(decoded_ND, expected_ND, rtol=1e-4, atol=1e-4):
                difference = np.abs(decoded_ND - expected_ND).max()
                return f"engine={engine} decodes vectors that differ from the plain network's by {difference:.2g}"
            ratio = np.square(decoded_ND - x).sum() / least
            if not ratio < _MSE_TOLERANCE:
                return f"engine={engine} precision={precision} has {ratio:.3f} times the least error"
    return None


def _least_error(weights: Weights, x_ND: np.ndarray, lists_N: np.ndarray) -> float:
    """The squared error of vectors (N, D) with the best of all codes."""
    config, total = weights.config, 0.0
    every = np.indices([config.codebook_size] * config.num_steps).reshape(config.num_steps, -1).T
    for number in range(config.num_lists):
        decoded_CD = NumpyDecoder(weights).decode(every, np.full(len(every), number))
        for x_D in x_ND[lists_N == number]:
            total += np.square(decoded_CD - x_D).sum(1).min()
    return total


def _engines(config: ModelConfig, device: str) -> Iterator[str]:
    """The engines that encode with a model."""
    for name in ENGINE_MODULES:
        with suppress(ConfigError):  # its package is not installed
            if name != "numpy" and find_engine(name).supports(config, device) is None:
                yield name
