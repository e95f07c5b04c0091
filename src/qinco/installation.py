"""`qinco doctor`: what this machine and this installation have, and whether they compute what they should.

Facts are JSON values under names that the table on the terminal shows too; a name that ends in `_bytes` is a size.
"""

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from qinco.codec.codec import Codec
from qinco.config import PRESETS, EncodeOptions, ModelConfig
from qinco.datasets.catalogue import DATASETS
from qinco.engines.engine import candidate_dtype, choose_engine, engines, make_encoder
from qinco.machine import cpuinfo, group_limits, processor_name, usable_cores
from qinco.maths.assignment import faiss
from qinco.maths.devices import choose_device, multiplies_bf16_fast
from qinco.model.random import random_model
from qinco.native import library
from qinco.vectors.rows import as_source
from qinco.version import __version__

# What the kernel calls the instructions that decide how fast vectors are encoded.
_FEATURES = {
    "x86_64": {"avx2": "avx2", "fma": "fma", "avx512f": "avx512f", "avx512_bf16": "avx512_bf16",
               "avx512_vbmi": "avx512vbmi", "amx_bf16": "amx_bf16"},
    "aarch64": {"neon": "asimd", "bf16": "bf16"},
}  # fmt: skip
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT")
_MODULES = {"faiss-cpu": "faiss", "scikit-learn": "sklearn"}
_MSE_TOLERANCE = 1.02


def check_installation() -> dict:
    """Inspect this machine and this installation, and check that they compute what they should.

    Returns:
        Facts as JSON values, by section: versions, processor, cores, threads, memory, libraries, devices, folders, data
        sets; names that end in `_bytes` are sizes. "problems" is a list of sentences, "self_check" is "ok" or "failed",
        with the reason as the last problem.

    Example:
        >>> qinco.check_installation()["problems"]
        []
    """
    facts, problems = inspect()
    failure = _failure()
    if failure is not None:
        problems.append(f"the self-check failed: {failure}")
    return facts | {"problems": problems, "self_check": "ok" if failure is None else "failed"}


def inspect(root: Path = Path("/")) -> tuple[dict, list[str]]:
    """Facts by section, and the problems that they show, each a sentence. `root` is where /proc, /sys and /dev lie."""
    requirements = list(_requirements())
    versions = {found.name: installed_version(found.name) for found in requirements}
    processor, cores = _processor(root), _cores(root)
    facts = {
        "versions": {"qinco": __version__, "python": platform.python_version()}
        | {name: number for name, number in versions.items() if number is not None},
        "not_installed": {
            found.name: f"pip install 'qinco[{found.extra}]'" if found.extra else "pip install --upgrade qinco"
            for found in requirements
            if versions[found.name] is None
        },
        "processor": processor,
        "cores": cores,
        "threads": {"torch": torch.get_num_threads(), "faiss": faiss.omp_get_max_threads()}
        | {variable: os.environ.get(variable) for variable in _THREAD_VARIABLES},
        "memory": _memory(root),
        "libraries": _libraries(),
        "devices": _devices(),
        "automatic": _automatic_choice(),
        "folders": {"current": _folder(Path.cwd), "temporary": _folder(tempfile.gettempdir)}
        | {"caches": "none, nothing is kept outside the files that you name"},
        "data_sets": _data_sets(),
    }
    problems = [*_version_problems(requirements, versions), *_machine_problems(root, processor, cores)]
    return facts, problems


# Versions


class _Requirement(NamedTuple):
    """A package that qinco's own metadata names: its least version, and the extra that asks for it, if any."""

    name: str
    least: str | None
    extra: str | None


def _requirements() -> Iterator[_Requirement]:
    seen = {"qinco"}
    with suppress(metadata.PackageNotFoundError):
        for line in metadata.requires("qinco") or []:
            name = re.match(r"[\w.-]+", line)[0]
            least, extra = re.search(r">=\s*([\w.]+)", line), re.search(r"extra == \W([\w-]+)", line)
            if name not in seen and (extra is None or extra[1] != "dev"):
                seen.add(name)
                yield _Requirement(name, least and least[1], extra and extra[1])


def installed_version(package: str) -> str | None:
    """The version in use, the installed one where the package is not imported, or None where it is missing."""
    loaded = getattr(sys.modules.get(_MODULES.get(package, package)), "__version__", None)
    if loaded is not None:
        return str(loaded)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _version_problems(requirements: list[_Requirement], versions: dict) -> Iterator[str]:
    if not requirements:
        yield "qinco runs from a folder without being installed, so no version was checked: pip install -e ."
    for wanted in requirements:
        found = versions[wanted.name]
        if found is None and wanted.extra is None:
            yield f"{wanted.name} is missing: pip install '{wanted.name}>={wanted.least}'"
        elif found is not None and wanted.least is not None and _numbers(found) < _numbers(wanted.least):
            yield f"{wanted.name} {found} is too old: pip install --upgrade '{wanted.name}>={wanted.least}'"


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text.split("+")[0])]


# The machine


def _processor(root: Path) -> dict:
    info = cpuinfo(root)
    flags = (info.get("flags") or info.get("Features") or "").split()
    features = _FEATURES.get(platform.machine(), {}) if flags else {}
    return {"name": processor_name(root), "platform": platform.platform()} | {
        name: flag in flags for name, flag in features.items()
    }


def _cores(root: Path) -> dict:
    places = set()
    for topology in root.glob("sys/devices/system/cpu/cpu[0-9]*/topology"):
        with suppress(OSError):
            places.add(tuple((topology / name).read_text() for name in ("physical_package_id", "core_id")))
    allowed = len(os.sched_getaffinity(0))
    quota = group_limits(root).cores
    return {"physical": len(places) or None, "logical": os.cpu_count(), "allowed": allowed, "quota": quota}


def _memory(root: Path) -> dict:
    sizes = {"total_bytes": None, "available_bytes": None, "limit_bytes": group_limits(root).memory}
    with suppress(OSError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                sizes[f"{name[3:].lower()}_bytes"] = int(value.split()[0]) * 1024
    return sizes


def _folder(find) -> dict:
    try:
        folder = find()
        facts = {"path": str(folder), "free_bytes": shutil.disk_usage(folder).free, "writable": False}
    except OSError as error:  # the current folder has been removed, or there is no temporary one
        return {"path": None, "free_bytes": None, "writable": False, "reason": str(error)}
    with suppress(OSError), tempfile.TemporaryFile(dir=folder):
        facts["writable"] = True
    return facts


def _data_sets() -> dict:
    """The data sets that have a file where it is expected, with the files that they lack."""
    found = {}
    for dataset in DATASETS.values():
        files = (dataset.database, dataset.trainset, dataset.queries, dataset.ground_truth)
        missing = [path for path in files if not Path(path).is_file()]
        if len(missing) < len(files):
            found[dataset.name] = {"files": len(files) - len(missing), "missing": missing}
    return found


# What computes


def _libraries() -> dict:
    return {
        "torch_kernels": torch.backends.cpu.get_cpu_capability(),
        "torch_onednn": torch.backends.mkldnn.is_available(),
        "torch_mkl": torch.backends.mkl.is_available(),
        "torch_cuda": torch.version.cuda,
        "faiss": faiss.get_compile_options().strip(),
    }


def _devices() -> dict:
    devices = {"cpu": {"fast_bf16": multiplies_bf16_fast(torch.device("cpu"))}}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(device)
        devices[str(device)] = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "fast_bf16": multiplies_bf16_fast(device),
        }
    return devices


def _automatic_choice() -> dict:
    device = choose_device("auto")
    # of the published sizes; models with very small layers are computed in float32
    config = ModelConfig(128, **PRESETS["qinco2-S"])
    candidates = candidate_dtype("auto", device, config)
    return {
        "device": str(device),
        "candidates": "bf16" if candidates is torch.bfloat16 else "float32",
        "reconstructions": "float32",
        "engine": choose_engine("auto", config, device).name,
        "native_kernels": library.level() if library.is_available() else "none, torch is used",
    }


def _machine_problems(root: Path, processor: dict, cores: dict) -> Iterator[str]:
    processor_device, number = torch.device("cpu"), torch.__version__
    is_fast = processor.get("avx512_bf16") or processor.get("amx_bf16")
    if is_fast and not multiplies_bf16_fast(processor_device):
        yield f"the processor multiplies bf16 fast, but torch {number} does not see it: upgrade torch"
    if multiplies_bf16_fast(processor_device) and not torch.backends.mkldnn.is_available():
        yield f"torch {number} is built without oneDNN, so that bf16 is slow: give precision=float32"
    if not library.is_available():
        yield "there are no compiled kernels, so that encoding is slow: install a C++ compiler, then qinco again"
    if (root / "dev/nvidiactl").exists() and not torch.cuda.is_available():
        yield f"torch {number} cannot use the NVIDIA GPU: install a CUDA build of torch that fits the driver"
    usable = usable_cores(root)
    if torch.get_num_threads() > usable:
        yield (
            f"torch uses {torch.get_num_threads()} threads, more than the cores that this process has ({usable}): give "
            f"threads={usable}, or set OMP_NUM_THREADS={usable}"
        )


def _failure() -> str | None:
    """Why the self-check fails on the device that is chosen automatically, or None."""
    try:
        return self_check(choose_device("auto"))
    except Exception as error:  # whatever it is, finding it is what this is for
        return f"{type(error).__name__}: {error}"


@torch.no_grad()
def self_check(device: torch.device) -> str | None:
    """Encode with a tiny model in every engine and compare with the plain network; what differs, or None."""
    config = ModelConfig(8, 3, 16, 2, 6, 12, starts_from_coarse=True, num_lists=4)
    codec = Codec(random_model(config), EncodeOptions(num_pairs=16, beam_width=4)).to(device)
    model = codec.model
    x = np.random.default_rng(0).standard_normal((256, config.dim), np.float32)
    x_ND = torch.from_numpy(x).to(device)
    lists_N = torch.cdist(model.normalize(x_ND), model.coarse_centroids).argmin(1)
    if not np.array_equal(codec.assign_lists(x), lists_N.cpu().numpy()):
        return "faiss does not find the nearest coarse centroids"
    encoder = make_encoder(model, codec.encode_options.override(engine="torch"), torch.float32)
    codes_NM, reached_ND = encoder.encode(model.normalize(x_ND), model.start(256, lists_N))
    decoded_ND = codec.decode(codes_NM, lists_N)
    expected_ND = model.denormalize(reached_ND).cpu().numpy()
    if not np.allclose(decoded_ND, expected_ND, rtol=1e-4, atol=1e-4):
        return f"decoded vectors differ from the search's by {np.abs(decoded_ND - expected_ND).max():.2g}"
    error = np.square(decoded_ND - x).sum()
    for engine in [name for name, engine in engines().items() if engine.supports(config, device) is None]:
        for precision in ("float32", "bf16") if multiplies_bf16_fast(device) else ("float32",):
            rule = codec.encode_options.override(engine=engine, precision=precision)
            _, codes = next(codec.encode_blocks(as_source(x), rule))
            ratio = np.square(codec.decode(codes) - x).sum() / error
            if not ratio < _MSE_TOLERANCE:
                return f"engine={engine} precision={precision} has {ratio:.3f} times the reference's error"
    return None
