"""Compiling kernels of Triton ahead of time for cards that this machine need not have, and reading what came out."""

import os
import re
import subprocess
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas

SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}  # that a program may have, by compute capability
_FLOATS = {
    "residual", "codebook", "codebooks", "first_codebook", "back", "back_codewords", "gram", "distances", "start",
    "reached", "next_reached", "own", "cross", "norms", "products", "offset", "slopes", "squares", "estimates",
}  # fmt: skip
_INTEGERS = {"pairs", "chosen", "codes", "shortlist"}
_COUNTS = {"count", "M"}
_WIDTHS = {"D", "width", "hidden", "inputs", "outputs", "first_input"}


def compiled(kernel, constants: dict, dtype: str, sm: int, num_warps: int, num_stages: int) -> dict:
    """Registers, spilled bytes, shared memory, matrix instructions and ptxas's warnings of a kernel.

    Pointers and widths are marked as divisible by 16, as a launch would, or loads would be narrow. `dtype` is that of
    tables, layers and streams: "bf16" or "fp32".
    """

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in _COUNTS | _WIDTHS:
            return "i32"
        is_float = name in _FLOATS or (name == "x" and "chosen" in kernel.arg_names)
        return "*i32" if name in _INTEGERS else "*fp32" if is_float else f"*{dtype}"

    signature = {name: kind(name) for name in kernel.arg_names}
    aligned = [place for place, (name, what) in enumerate(signature.items()) if what[0] == "*" or name in _WIDTHS]
    source = triton.compiler.ASTSource(
        fn=kernel, signature=signature, constexprs=constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
    )  # fmt: skip
    options = {"num_warps": num_warps, "num_stages": num_stages}
    result = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    ptx = result.asm["ptx"]
    log = _assembled(ptx, sm)
    return {
        "registers": int(re.search(r"Used (\d+) registers", log)[1]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", log))),
        "shared": result.metadata.shared,
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
        "mma": len(re.findall(r"mma\.sync", ptx)),
        "warnings": sorted(set(re.findall(r"instructions are (.*?) (?:for|in) the function", log))),
    }


def _assembled(ptx: str, sm: int) -> str:
    """What ptxas says of a program."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        target = re.search(r"\.target (\w+)", ptx)[1]
        command = [get_ptxas(sm).path, "-v", f"--gpu-name={target}", file.name, "-o", os.devnull]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr
