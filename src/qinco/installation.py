"""What this machine and this installation have, and whether they compute what they should."""

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

import numpy as np
import torch

from qinco.codec.codec import Codec
from qinco.config import PRESETS, EncodeOptions, ModelConfig
from qinco.datasets.catalogue import DATASETS
from qinco.engines.engine import candidate_dtype, choose_engine, engines, pack
from qinco.machine import cpuinfo, free_memory, group_limits, processor_name, usable_cores
from qinco.maths.assignment import faiss
from qinco.maths.devices import choose_device, multiplies_bf16_fast
from qinco.model.qinco import random_model
from qinco.native import library
from qinco.vectors.rows import as_source
from qinco.version import __version__

# Names of instruction sets in /proc/cpuinfo that decide how fast vectors are encoded.
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
    try:
        failure = self_check(choose_device("auto"))
    except Exception as error:  # any error is a finding
        failure = f"{type(error).__name__}: {error}"
    if failure is not None:
        problems.append(f"the self-check failed: {failure}")
    return facts | {"problems": problems, "self_check": "ok" if failure is None else "failed"}


def inspect(root: Path = Path("/")) -> tuple[dict, list[str]]:
    """Facts by section, and the problems that they show, each a sentence. `root` holds /proc, /sys and /dev."""
    extras = _required_packages()
    versions = {name: installed_version(name) for name in extras}
    problems = list(_version_problems(extras, versions))
    processor, limits = _processor(root), group_limits(root)
    facts = {
        "versions": {"qinco": __version__, "python": platform.python_version()}
        | {name: number for name, number in versions.items() if number is not None},
        "not_installed": {
            name: f"pip install 'qinco[{extra}]'" if extra else "pip install --upgrade qinco"
            for name, (_, extra) in extras.items()
            if versions[name] is None
        },
        "processor": processor,
        "cores": {"physical": _physical_cores(root), "logical": os.cpu_count(),
                  "allowed": len(os.sched_getaffinity(0)), "quota": limits.cores},
        "threads": {"torch": torch.get_num_threads(), "faiss": faiss.omp_get_max_threads()}
        | {variable: os.environ.get(variable) for variable in _THREAD_VARIABLES},
        "memory": {"total_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
                   "available_bytes": free_memory(root), "limit_bytes": limits.memory},
        "libraries": {
            "torch_kernels": torch.backends.cpu.get_cpu_capability(),
            "torch_onednn": torch.backends.mkldnn.is_available(),
            "torch_mkl": torch.backends.mkl.is_available(),
            "torch_cuda": torch.version.cuda,
            "faiss": faiss.get_compile_options().strip(),
        },
        "devices": _devices(),
        "automatic": _automatic_choice(),
        "folders": {"current": _folder(Path.cwd), "temporary": _folder(tempfile.gettempdir)},
        "data_sets": _data_sets(),
    }  # fmt: skip
    return facts, problems + list(_machine_problems(root, processor))


def installed_version(package: str) -> str | None:
    """Version of a package: the imported one, or else the installed one; None if it is missing."""
    loaded = getattr(sys.modules.get(_MODULES.get(package, package)), "__version__", None)
    if loaded is not None:
        return str(loaded)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _required_packages() -> dict[str, tuple[str | None, str | None]]:
    """The packages that qinco's metadata names: the minimum version, and the extra that asks for it, if any."""
    found = {}
    with suppress(metadata.PackageNotFoundError):
        for line in metadata.requires("qinco") or []:
            name = re.match(r"[\w.-]+", line)[0]
            minimum, extra = re.search(r">=\s*([\w.]+)", line), re.search(r"extra == \W([\w-]+)", line)
            if name != "qinco" and (extra is None or extra[1] != "dev"):
                found.setdefault(name, (minimum and minimum[1], extra and extra[1]))
    return found


def _version_problems(packages: dict, versions: dict) -> Iterator[str]:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", text.split("+")[0])]

    if not packages:
        yield "qinco runs from a folder without being installed, so no version was checked: pip install -e ."
    for name, (minimum, extra) in packages.items():
        if versions[name] is None and extra is None:
            yield f"{name} is missing: pip install '{name}>={minimum}'"
        elif versions[name] is not None and minimum is not None and numbers(versions[name]) < numbers(minimum):
            yield f"{name} {versions[name]} is too old: pip install --upgrade '{name}>={minimum}'"


def _processor(root: Path) -> dict:
    info = cpuinfo(root)
    flags = (info.get("flags") or info.get("Features") or "").split()
    features = _FEATURES.get(platform.machine(), {}) if flags else {}
    return {"name": processor_name(root), "platform": platform.platform()} | {
        name: flag in flags for name, flag in features.items()
    }


def _physical_cores(root: Path) -> int | None:
    cores = set()
    for topology in root.glob("sys/devices/system/cpu/cpu[0-9]*/topology"):
        with suppress(OSError):
            cores.add(tuple((topology / name).read_text() for name in ("physical_package_id", "core_id")))
    return len(cores) or None


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
    """The data sets of which files are there, with the files that are missing."""
    found = {}
    for dataset in DATASETS.values():
        files = (dataset.database, dataset.trainset, dataset.queries, dataset.ground_truth)
        missing = [path for path in files if not Path(path).is_file()]
        if len(missing) < len(files):
            found[dataset.name] = {"files": len(files) - len(missing), "missing": missing}
    return found


def _devices() -> dict:
    devices = {"cpu": {"fast_bf16": multiplies_bf16_fast(torch.device("cpu"))}}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(device)
        devices[str(device)] = {"name": properties.name, "memory_bytes": properties.total_memory,
                                "fast_bf16": multiplies_bf16_fast(device)}  # fmt: skip
    return devices


def _automatic_choice() -> dict:
    """What "auto" means here for a model of a published size; very small layers are computed in float32."""
    device, config = choose_device("auto"), ModelConfig(128, **PRESETS["qinco2-S"])
    return {
        "device": str(device),
        "candidates": "bf16" if candidate_dtype("auto", device, config) is torch.bfloat16 else "float32",
        "reconstructions": "float32",
        "engine": choose_engine("auto", config, device).name,
        "native_kernels": library.level() if library.is_available() else "none, torch is used",
    }


def _machine_problems(root: Path, processor: dict) -> Iterator[str]:
    is_fast, number = multiplies_bf16_fast(torch.device("cpu")), torch.__version__
    if (processor.get("avx512_bf16") or processor.get("amx_bf16")) and not is_fast:
        yield f"the processor is fast at bf16, but torch {number} does not detect it: upgrade torch"
    if is_fast and not torch.backends.mkldnn.is_available():
        yield f"torch {number} is built without oneDNN, so bf16 is slow: give precision=float32"
    if not library.is_available():
        yield "the compiled kernels are missing, so encoding is slow: install a C++ compiler, then reinstall qinco"
    if (root / "dev/nvidiactl").exists() and not torch.cuda.is_available():
        yield f"torch {number} cannot use the NVIDIA GPU: install a CUDA build of torch that fits the driver"
    threads, cores = torch.get_num_threads(), usable_cores(root)
    if threads > cores:
        yield f"torch uses {threads} threads on {cores} cores: give threads={cores} or set OMP_NUM_THREADS={cores}"


@torch.no_grad()
def self_check(device: torch.device) -> str | None:
    """Encode with a tiny model in every engine and compare with the plain network; what differs, or None."""
    config = ModelConfig(8, 3, 16, 2, 6, 12, starts_from_coarse=True, num_lists=4)
    codec = Codec(random_model(config), EncodeOptions(num_pairs=16, beam_width=4)).to(device)
    (model,) = codec.models
    x = np.random.default_rng(0).standard_normal((256, config.dim), np.float32)
    x_ND = torch.from_numpy(x).to(device)
    lists_N = torch.cdist(model.normalize(x_ND), model.coarse_centroids).argmin(1)
    if not np.array_equal(codec.assign_lists(x), lists_N.cpu().numpy()):
        return "faiss does not find the nearest coarse centroids"
    packed, start_ND = pack(model, "torch", torch.float32), model.initial_reconstruction(256, lists_N)
    codes_NM, reached_ND = packed.encode_tensors(model.normalize(x_ND), start_ND, codec.encode_options)
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
