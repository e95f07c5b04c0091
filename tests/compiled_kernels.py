"""Compiles Triton kernels for GPUs that need not be there, and reads what ptxas says of them."""

import os
import re
import subprocess
import tempfile
from pathlib import Path

VERSIONS = (80, 89, 90)  # of GPUs, as sm_80
SHARED_LIMIT = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}  # bytes a program may have


def compiled(kernel, arguments: dict[str, str], constants: dict, version: int, **options) -> dict:
    """Registers, spilled bytes, shared memory, matrix instructions and ptxas's warnings of a kernel.

    `arguments` are the types of those that are no constants; pointers and "i32:16" are multiples of 16, as a launch
    finds them.
    """
    import triton
    from triton.backends.nvidia.compiler import get_ptxas

    kinds = {name: "constexpr" if name in constants else arguments[name] for name in kernel.arg_names}
    aligned = [i for i, kind in enumerate(kinds.values()) if kind[0] == "*" or kind.endswith(":16")]
    signature = {name: kind.removesuffix(":16") for name, kind in kinds.items()}
    source = triton.compiler.ASTSource(  # type: ignore
        fn=kernel, signature=signature, constexprs=constants, attrs={(i,): [["tt.divisibility", 16]] for i in aligned}
    )
    target = triton.backends.compiler.GPUTarget("cuda", version, 32)  # type: ignore
    # Without fusion named, Triton 3.9 warns that 3.10 will leave it out.
    result = triton.compile(source, target=target, options={"enable_fp_fusion": True, **options})
    ptx = result.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        name = re.findall(r"\.target (\w+)", ptx)[0]
        command = [get_ptxas(version).path, "-v", f"--gpu-name={name}", str(path), "-o", os.devnull]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "registers": int(re.findall(r"Used (\d+) registers", log)[0]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", log))),
        "shared": result.metadata.shared,
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
        "mma": len(re.findall(r"mma\.sync", ptx)),
        "warnings": re.findall(r"warning.*|.*serialized due to.*", log),
    }
