"""Recordings of what is launched on a GPU."""

from collections.abc import Callable
from typing import Any

import torch


def record(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record what a function launches on the current GPU, by a CUDA graph: what replays it, and what it returned.

    What the function is given must stay where it is, and each replay leaves its results where they were. The function
    may not wait for the device. It is called twice: libraries allocate memory in a first call on a stream.
    """
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        results = work()
    return graph.replay, results
