"""Triton's interpreter, mended where it computes another thing than a card does."""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def repair() -> None:
    """Make products and rounding of bf16 right, which are uint16 there, and let scalars count in `range`.

    These are private names of the pinned version: nothing outside of tests uses them.
    """
    builder, patch, convert = interpreter.InterpreterBuilder, interpreter._patch_lang_tensor, interpreter._convert_float
    dot = builder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def rounded(data, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(data, source, target, mode)
        return torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.int16).numpy().view(np.uint16)

    def with_index(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    builder.create_dot = lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)
    interpreter._patch_lang_tensor, interpreter._convert_float = with_index, rounded
