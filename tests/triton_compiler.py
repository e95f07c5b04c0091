"""The engine's Triton kernels compiled ahead of time, with arguments of the types that a launch gives them."""

from compiled_kernels import compiled as compiled_with

_FLOATS = {
    "residual", "codebook", "codebooks", "first_codebook", "back", "back_codewords", "gram", "distances", "start",
    "reached", "next_reached", "own", "cross", "norms", "products", "offset", "slopes", "squares", "estimates",
}  # fmt: skip
_INTEGERS = {"pairs", "chosen", "codes", "shortlist"}
_COUNTS = {"count", "M"}
_WIDTHS = {"D", "width", "hidden", "inputs", "outputs", "first_input"}


def compiled(kernel, constants: dict, dtype: str, sm: int, num_warps: int, num_stages: int) -> dict:
    """As `compiled_kernels.compiled`; `dtype` is that of tables, layers and streams: "bf16" or "fp32"."""

    def kind(name: str) -> str:
        if name in _COUNTS:
            return "i32"
        if name in _WIDTHS:
            return "i32:16"
        is_float = name in _FLOATS or (name == "x" and "chosen" in kernel.arg_names)
        return "*i32" if name in _INTEGERS else "*fp32" if is_float else f"*{dtype}"

    arguments = {name: kind(name) for name in kernel.arg_names}
    return compiled_with(kernel, arguments, constants, sm, num_warps=num_warps, num_stages=num_stages)
