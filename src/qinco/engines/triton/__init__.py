"""Kernels of the Triton engine and what launches them; see `qinco.engines.triton_engine`."""
